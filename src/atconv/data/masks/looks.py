"""What tells a mask from a photo: few values, and no shades between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atconv.data.images import opened_image

__all__ = ["Look", "look_at"]

_FEW = 32  # values that nearly all pixels of a mask have
_SHADES = 12  # what JPEG adds to a value or takes from it
_MAX_SIDE = 512


@dataclass(frozen=True)
class Look:
    """What an image looks like."""

    flat: bool
    """it may be a mask"""
    values: int
    """how many it has"""
    gray: bool
    """or a palette, and no colors"""
    size: tuple[int, int]


def look_at(path: Path) -> Look | None:
    """What an image looks like; None where it cannot be read."""
    try:
        with opened_image(path) as image:
            shades = image.format == "JPEG"
            pixels = np.asarray(image.convert("RGB") if image.mode not in ("1", "L", "P") else image)
            size = image.size
            gray = image.mode in ("1", "L", "P") or image.mode.startswith("I;16")
    except (OSError, ValueError):
        return None
    step = -(-max(size) // _MAX_SIDE)
    pixels = pixels[::step, ::step].astype(np.int32)
    if shades:
        return Look(_flat_jpeg(pixels), len(np.unique(pixels // 64)), gray, size)
    values = pixels if pixels.ndim == 2 else pixels @ np.array([1 << 16, 1 << 8, 1], np.int32)
    counts = np.sort(np.unique(values, return_counts=True)[1])[::-1]
    needed = 1 + int(np.searchsorted(counts.cumsum(), 0.97 * counts.sum()))
    return Look(needed <= min(_FEW, max(2, counts.sum() // 4)), len(counts), gray, size)


def _flat_jpeg(pixels: NDArray[np.int32]) -> bool:
    """Whether a gray JPEG has a few values where blocks are even, and little but what JPEG adds at edges."""
    if pixels.ndim == 3:
        if np.ptp(pixels, axis=2).max(initial=0) > _SHADES:
            return False
        pixels = pixels[..., 1]
    counts = np.bincount(pixels.ravel(), minlength=256)
    top = np.argsort(counts)[::-1][:4]
    near = (abs(np.arange(256)[:, None] - top) <= _SHADES).any(1)
    return bool(counts[top].sum() >= 0.4 * pixels.size and counts[near].sum() >= 0.9 * pixels.size)
