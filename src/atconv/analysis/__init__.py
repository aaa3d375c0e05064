"""What the operator does with a picture."""
