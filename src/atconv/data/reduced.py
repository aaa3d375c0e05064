"""Images that are cropped and resized as they are read, for which a JPEG need not be decoded in full."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

from atconv.data.images import PrepareImage, stored_geometry, upright
from atconv.data.orientation import turn_corners, turn_size

__all__ = ["Cut", "CutImage"]


class Cut(NamedTuple):
    """What is taken of an upright image."""

    box: tuple[int, int, int, int]
    """left, top, right, bottom"""
    size: tuple[int, int]
    """width and height that the box is resized to"""
    resample: Image.Resampling


class CutImage(PrepareImage):
    """First step of a transform that else crops and resizes second: does both, of an image that need not be
    decoded yet.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as small as leaves the box at least as large as it
    becomes, so that nothing is enlarged. Where that is its whole size, and of all other images, the result is
    that of the steps it replaces, bit for bit.

    Args:
        in_chans: channels that the model reads.
        choose: width and height of an upright image → what to take of it.
    """

    def __init__(self, in_chans: int, choose: Callable[[int, int], Cut]) -> None:
        super().__init__(in_chans)
        self.choose = choose

    def __call__(self, image: Image.Image) -> Image.Image:
        (width, height), orientation = stored_geometry(image)
        box, size, resample = self.choose(*turn_size((width, height), orientation))
        scale = _decode_smaller(image, min((box[2] - box[0]) // size[0], (box[3] - box[1]) // size[1]))
        # A side that is no multiple of the scale ends inside its last pixel, and may begin there when turned.
        decoded = math.ceil(width / scale), math.ceil(height / scale)
        x, y, _, _ = turn_corners((0, 0, width / scale, height / scale), decoded, orientation)
        left, right = (x + side / scale for side in box[::2])
        top, bottom = (y + side / scale for side in box[1::2])
        # Cropped before it is resized, since the filter reaches beyond a box.
        x0, y0 = math.floor(left), math.floor(top)
        cropped = upright(image, self.mode).crop((x0, y0, math.ceil(right), math.ceil(bottom)))
        return cropped.resize(size, resample, (left - x0, top - y0, right - x0, bottom - y0))


def _decode_smaller(image: Image.Image, factor: int) -> int:
    """Let an image be decoded as small as 1/factor at least, where it is a JPEG that is not decoded yet.
    Returns how many times smaller it is."""
    scale = max(s for s in (1, 2, 4, 8) if s <= max(1, factor))
    width, height = image.size
    return scale if scale > 1 and image.draft(None, (width // scale, height // scale)) else 1
