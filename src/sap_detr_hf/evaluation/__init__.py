"""COCO AP of a model and the report about it."""
