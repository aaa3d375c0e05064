"""Image classification: train, evaluate, predict."""
