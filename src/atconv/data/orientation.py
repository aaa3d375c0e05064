"""EXIF orientation: annotations may belong to the pixels as stored, or to the image turned upright."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atconv.data.checking import in_threads

__all__ = ["Exif", "annotation_turns", "turn_corners", "turn_mask", "turn_size"]

Exif = Literal["upright", "stored"]
Corners = tuple[float, float, float, float]

_TAG = 0x0112
# What turns stored pixels upright: swap x and y, then mirror x, then mirror y.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def annotation_turns(paths: Sequence[Path], sizes: Sequence[tuple[int, int]], exif: Exif | None) -> list[int]:
    """For each image, the orientation by which its annotations are turned to lie on the upright image.

    Args:
        sizes: width and height that each image's annotations are for.
        exif: what annotations belong to; None lets sizes decide where the two differ.

    Raises:
        ValueError: `exif` is None, and the size of an image with an orientation does not tell.
    """
    if exif == "upright":
        return [1] * len(paths)
    turns, unclear = [], []
    headers = in_threads(lambda i: _header(paths[i]), len(paths), "reading orientations")
    for path, size, (orientation, stored) in zip(paths, sizes, headers, strict=True):
        turned = turn_size(stored, orientation)
        if exif is None and orientation != 1 and turned == stored:
            unclear.append(f"{path.name} ({orientation})")
        belongs_to_stored = exif == "stored" or size == stored != turned
        turns.append(orientation if belongs_to_stored else 1)
    if unclear:
        more = f" and {len(unclear) - 5} more" if len(unclear) > 5 else ""
        raise ValueError(
            f"{len(unclear)} images carry an EXIF orientation, and their annotations may belong to the "
            "pixels as stored or to the image turned upright: "
            f"{', '.join(unclear[:5])}{more}. Look at one and give --exif stored or --exif upright"
        )
    return turns


def turn_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Of an image, turned upright."""
    return (size[1], size[0]) if _TURNS[orientation][0] else size


def turn_corners(corners: Corners, size: tuple[int, int], orientation: int) -> Corners:
    """Left, top, right, bottom on the upright image, from those on stored pixels of a width and height."""
    swap, mirror_x, mirror_y = _TURNS[orientation]
    left, top, right, bottom = corners
    if swap:
        left, top, right, bottom = top, left, bottom, right
    width, height = turn_size(size, orientation)
    if mirror_x:
        left, right = width - right, width - left
    if mirror_y:
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def turn_mask(mask: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """H W on the upright image, from that on stored pixels."""
    swap, mirror_x, mirror_y = _TURNS[orientation]
    mask = mask.T if swap else mask
    mask = mask[:, ::-1] if mirror_x else mask
    return np.ascontiguousarray(mask[::-1] if mirror_y else mask)


def _header(path: Path) -> tuple[int, tuple[int, int]]:
    """Orientation and stored size; 1 where the file cannot be read, which is another check's matter."""
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_TAG, 1)
            return orientation if orientation in _TURNS else 1, image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1, (0, 0)
