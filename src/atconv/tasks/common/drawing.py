"""What drawn predictions share: colors of classes, sizes, fonts, rows of images, names of files."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import rcParams
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Patch
from torch import Tensor

from atconv.plots import DPI, plt, save

__all__ = ["Color", "PlotFiles", "class_colors", "drawn_size", "find_font", "plot_rows"]

Color = tuple[int, int, int]
_MIN_SIZE = 480  # pixels of an image's longer side
_MAX_RATIO = 1.25  # of height to width, of an image among others


def class_colors(count: int) -> list[Color]:
    """Bright colors, neighbors far apart: hues by the golden ratio, lighter and darker alternating."""
    golden = (math.sqrt(5) - 1) / 2
    colors = []
    for i in range(count):
        hue, saturation, value = 0.02 + i * golden, 0.75 if i % 2 else 0.55, 1.0 if i % 3 else 0.85
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((int(255 * red), int(255 * green), int(255 * blue)))
    return colors


def drawn_size(size: Sequence[int], maximum: float = math.inf) -> tuple[int, int]:
    """Height and width of a drawing: small images are enlarged by a whole number until the longer side has
    480 pixels; none becomes longer than `maximum`."""
    factor = min(max(1, -(-_MIN_SIZE // max(size))), maximum / max(size))
    height, width = (max(1, round(length * factor)) for length in size)
    return height, width


def find_font(texts: Iterable[str]) -> str:
    """The file of the first font of plots that has all letters, else of the first."""
    letters = {ord(letter) for text in texts for letter in text}
    fonts = [findfont(family) for family in rcParams["font.family"]]
    return next((font for font in fonts if letters <= set(get_font(font).get_charmap())), fonts[0])


def plot_rows(
    rows: Sequence[Sequence[tuple[str, Tensor]]],
    path: Path,
    width: int,
    legend: Sequence[Patch] = (),
    legend_size: float = 10,
) -> None:
    """Plot rows of images, each row with images of one size.

    Args:
        rows: title and 3 H W of uint8 of each image.
        path: PNG to write.
        width: pixels of an image.
        legend: what stands below.
        legend_size: of its text, in points.
    """
    shapes = [row[0][1].shape for row in rows]
    heights = [width * min(height / length, _MAX_RATIO) for _, height, length in shapes]
    titles = sum(30 for row in rows if any(title for title, _ in row))
    columns = max(1, min(int(6 * (10 / legend_size) * (width / _MIN_SIZE)), len(legend)))
    below = (50 + 25 * (len(legend) // columns)) * legend_size / 10 if legend else 0
    figure, axes = plt.subplots(
        len(rows),
        len(rows[0]),
        figsize=((width + 15) * len(rows[0]) / DPI, (sum(heights) + 15 * len(rows) + titles + below) / DPI),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, image) in zip(axes.flat, (cell for row in rows for cell in row), strict=True):
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    if legend:
        figure.legend(handles=list(legend), loc="outside lower center", ncols=columns, fontsize=legend_size)
    save(figure, path)


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
