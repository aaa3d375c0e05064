"""Experiments with the operator, and the data sets and harness they share. Not part of the package."""
