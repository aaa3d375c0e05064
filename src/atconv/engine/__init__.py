"""One training loop for all tasks: batches, checkpoints, resume, progress."""
