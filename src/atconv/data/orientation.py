"""EXIF orientation: annotations may belong to the pixels as stored, or to the image turned upright."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Exif", "annotation_turn", "turn_corners", "turn_mask", "turn_size"]

Exif = Literal["upright", "stored"]
Corners = tuple[float, float, float, float]

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


def annotation_turn(
    annotated: tuple[int, int] | None, stored: tuple[int, int], orientation: int, exif: Exif | None
) -> int | None:
    """The orientation by which annotations are turned to lie on the upright image, 1 where they already do,
    None where sizes do not tell.

    Args:
        annotated: width and height that the annotations are for; None where they do not say.
        stored: width and height of the image as stored.
        orientation: the image's.
        exif: what annotations belong to; None lets sizes decide where the two differ.
    """
    turned = turn_size(stored, orientation)
    if exif is None and orientation != 1 and (annotated is None or turned == stored):
        return None
    return orientation if exif == "stored" or (exif is None and annotated == stored != turned) else 1


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
