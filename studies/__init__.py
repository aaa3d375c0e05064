"""Experiments with the operator, and the data sets and harness they share. Not part of the package."""

from atconv.terminal import quiet_libraries

quiet_libraries()  # before a study imports them
