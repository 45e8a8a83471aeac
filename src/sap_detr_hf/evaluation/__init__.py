"""Measure the COCO AP of a model and write a report."""
