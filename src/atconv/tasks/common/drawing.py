"""What drawn predictions share: colors of classes, sizes, names of files."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["Color", "PlotFiles", "class_colors", "enlarged_size"]

Color = tuple[int, int, int]


def class_colors(count: int) -> list[Color]:
    """Bright colors, neighbors far apart: hues by the golden ratio, lighter and darker alternating."""
    golden = (math.sqrt(5) - 1) / 2
    colors = []
    for i in range(count):
        hue, saturation, value = 0.02 + i * golden, 0.75 if i % 2 else 0.55, 1.0 if i % 3 else 0.85
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((int(255 * red), int(255 * green), int(255 * blue)))
    return colors


def enlarged_size(size: Sequence[int], minimum: int) -> tuple[int, int]:
    """Height and width, enlarged by a whole number until the longer side has `minimum` pixels."""
    factor = max(1, -(-minimum // max(size)))
    return size[0] * factor, size[1] * factor


class PlotFiles:
    """Names of PNG files in a folder, one for each image, no two alike."""

    def __init__(self, folder: Path, protected: Iterable[str | Path] = ()) -> None:
        self.folder = folder
        self._names: set[str] = set()
        self._images = {Path(path).resolve() for path in protected}

    def add(self, image: Path) -> Path:
        """The file for the next image.

        Raises:
            ValueError: the file is one of the images so far, or protected.
        """
        stem, number = image.stem, 2
        while stem in self._names:
            stem, number = f"{image.stem}-{number}", number + 1
        self._names.add(stem)
        self._images.add(image.resolve())
        file = self.folder / f"{stem}.png"
        if file.resolve() in self._images:
            raise ValueError(f"{file} is one of the images and would be written over: give another --out")
        return file
