"""What several mixers ask of their options and of the maps they are given."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_input", "check_least", "check_odd"]


def check_input(x: Tensor, dim: int) -> None:
    """Raise ValueError unless `x` is a map of `dim` channels."""
    if x.ndim != 4 or x.shape[1] != dim:
        raise ValueError(f"this token mixer takes maps B {dim} H W, got {tuple(x.shape)}")


def check_odd(kernel_size: int) -> None:
    """Raise ValueError unless a kernel of this size keeps the size of a map."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")


def check_least(least: int = 1, **options: int) -> None:
    """Raise ValueError for the first option that is below its least value."""
    for name, value in options.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
