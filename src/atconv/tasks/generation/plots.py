"""Pictures of a generation run: labeled grids of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atconv.plots import plt, save

__all__ = ["draw_grid"]

_LEAST_SIDE = 56  # screen pixels that a sample takes at least


def draw_grid(rows: Sequence[NDArray[np.uint8]], names: Sequence[str], title: str, path: Path) -> None:
    """Draw samples in rows, each named on its left.

    Args:
        rows: N H W C uint8 each, C 1 or 3; all of one H, W, C.
        names: one for each row.
        title: above them.
        path: PNG to write.
    """
    height, width, channels = rows[0].shape[1:]
    columns = max(len(row) for row in rows)
    gap = 1
    canvas = np.full(
        (len(rows) * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, dtype=np.uint8
    )
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image
    side = max(_LEAST_SIDE, width)
    size = (columns * side / 100 + 0.9, len(rows) * side * height / width / 100 + 0.5)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    shown: Any = canvas[..., 0] if channels == 1 else canvas
    axis.imshow(shown, cmap="gray" if channels == 1 else None, vmin=0, vmax=255, interpolation="none")
    axis.set_yticks([i * (height + gap) + height / 2 for i in range(len(rows))], labels=list(names))
    axis.set_xticks([])
    axis.tick_params(length=0)
    for side_line in axis.spines.values():
        side_line.set_visible(False)
    axis.set_title(title, fontsize=10)
    save(figure, path, dpi=100)
