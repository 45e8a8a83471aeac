"""Detection data sets: sources, COCO files, training samples, checks."""
