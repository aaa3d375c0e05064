"""Plots of a generation run: labeled grids of samples."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.utils import make_grid

from atconv.plots import plt, save, shorten

__all__ = ["grid_pixels", "plot_grid"]

_MIN_WIDTH, _MIN_HEIGHT = 56, 18  # screen pixels of a sample; its name is that high
_MAX_PIXELS = 60_000  # matplotlib's limit, but for names and title
_DPI = 100
_CHARACTER = 7  # pixels of one in the title


def plot_grid(images: NDArray[np.uint8], columns: int, names: Sequence[str], title: str, path: Path) -> None:
    """Plot samples in rows, each with a name on its left.

    Args:
        images: N H W C, C 1 or 3, row after row.
        columns: samples in a row.
        names: one for each row.
        title: above them.
        path: PNG to write.
    """
    height, width = images.shape[1:3]
    canvas = make_grid(torch.from_numpy(images).permute(0, 3, 1, 2), columns, padding=1, pad_value=255)
    pixels = grid_pixels(len(names), columns, height, width)
    figure = plt.figure(figsize=(pixels[0] / _DPI, pixels[1] / _DPI))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(canvas.permute(1, 2, 0).numpy(), interpolation="none")
    labels = [shorten(name, 32) for name in names]
    axis.set_yticks([i * (height + 1) + 1 + height / 2 for i in range(len(names))], labels=labels)
    axis.set_xticks([])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title(textwrap.fill(title, max(40, int(pixels[0]) // _CHARACTER)), fontsize=10)
    with plt.rc_context({"savefig.bbox": "tight"}):  # names and title lie outside and are never cut
        save(figure, path, dpi=_DPI)


def grid_pixels(rows: int, columns: int, height: int, width: int) -> tuple[float, float]:
    """Width and height of a grid of images, in screen pixels.

    Raises:
        ValueError: it is larger than plots can be.
    """
    scale = max(1, _MIN_WIDTH / width, _MIN_HEIGHT / height)
    pixels = columns * width * scale, rows * height * scale
    if max(pixels) > _MAX_PIXELS:
        raise ValueError(
            f"{rows} rows of {columns} images are too large for a grid: sample fewer, or name an .npz "
            "file or a folder with --out"
        )
    return pixels
