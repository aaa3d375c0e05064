"""Checks of options and inputs that several mixers share."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_input", "check_min", "check_odd"]


def check_input(x: Tensor, dim: int) -> None:
    """Raise ValueError unless `x` is a map of `dim` channels."""
    if x.ndim != 4 or x.shape[1] != dim:
        raise ValueError(f"this token mixer takes maps B {dim} H W, got {tuple(x.shape)}")


def check_odd(kernel_size: int) -> None:
    """Raise ValueError unless a kernel of this size keeps the size of a map."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")


def check_min(**options: int) -> None:
    """Raise ValueError for the first option below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
