"""A look at DATA before training, as `atconv data check` prints it."""
