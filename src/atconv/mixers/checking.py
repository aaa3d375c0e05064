"""What several mixers ask of their options."""

from __future__ import annotations

__all__ = ["check_odd"]


def check_odd(kernel_size: int) -> None:
    """Raise ValueError unless a kernel of this size keeps the size of a map."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
