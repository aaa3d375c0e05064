"""Real scans of digits that need no files."""

from __future__ import annotations

import numpy as np
from PIL import Image

from atconv.data.images import Mode, as_mode
from atconv.data.sources.base import ImageSource

__all__ = ["DigitsSource"]


class DigitsSource(ImageSource):
    """scikit-learn's 1,797 real scans of handwritten digits, 8 × 8 gray. Nothing is downloaded."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        super().__init__("digits", [str(name) for name in digits.target_names], digits.target)
        # Values are 0…16 ink counts.
        self._pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)

    def read(self, index: int, mode: Mode) -> Image.Image:
        return as_mode(Image.fromarray(self._pixels[index]), mode)
