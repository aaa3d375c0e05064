"""Detection and instance segmentation: boxes, names and masks of objects."""
