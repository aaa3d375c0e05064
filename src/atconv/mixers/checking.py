"""What several mixers ask of their options."""

from __future__ import annotations

__all__ = ["check_least", "check_odd"]


def check_odd(kernel_size: int) -> None:
    """Raise ValueError unless a kernel of this size keeps the size of a map."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")


def check_least(least: int = 1, **options: int) -> None:
    """Raise ValueError for the first option that is below its least value."""
    for name, value in options.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
