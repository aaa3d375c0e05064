"""Drawn pictures: colors of classes, sizes, names of files."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

__all__ = ["colors_of", "drawn_files", "shown_size"]

Color = tuple[int, int, int]


def colors_of(count: int) -> list[Color]:
    """Bright colors, neighbors far apart: hues by the golden ratio, lighter and darker by turns."""
    golden = (math.sqrt(5) - 1) / 2
    hsv = [(0.02 + i * golden, 0.75 if i % 2 else 0.55, 1.0 if i % 3 else 0.85) for i in range(count)]
    return [
        (int(255 * r), int(255 * g), int(255 * b)) for r, g, b in (colorsys.hsv_to_rgb(*one) for one in hsv)
    ]


def shown_size(size: Sequence[int], least: int) -> tuple[int, int]:
    """Height and width, enlarged by a whole number until the longer side has `least` pixels."""
    factor = max(1, -(-least // max(size)))
    return size[0] * factor, size[1] * factor


def drawn_files(paths: Sequence[Path], folder: Path) -> list[Path]:
    """A PNG file in the folder for each picture, no two alike.

    Raises:
        ValueError: one of them is a picture that is given.
    """
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem, number = path.stem, 2
        while stem in taken:
            stem, number = f"{path.stem}-{number}", number + 1
        taken.add(stem)
        names.append(f"{stem}.png")
    found = [folder / name for name in names]
    given = {path.resolve() for path in paths}
    hit = next((path for path in found if path.resolve() in given), None)
    if hit is not None:
        raise ValueError(f"{hit} is one of the pictures and would be written over: give another --out")
    return found
