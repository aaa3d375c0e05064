"""What all plots share: files only, names taken as they are, readable at 100 %. And learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

mpl.use("Agg")  # files only: no display is needed
mpl.rcParams["text.parse_math"] = False  # a class may be called "$"

__all__ = ["DPI", "Panel", "plot_curves", "plt", "save", "shorten"]

DPI = 110


class Panel(NamedTuple):
    """One set of axes: its title, its vertical label, and the columns of metrics.csv in it, by label."""

    title: str
    unit: str
    columns: Mapping[str, str]


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write a PNG and let go of the figure."""
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def shorten(name: str, length: int = 18) -> str:
    """A name that fits next to a plot."""
    return name if len(name) <= length else name[: length - 1] + "…"


def plot_curves(
    history: Sequence[dict[str, Any]],
    panels: Sequence[Panel],
    path: Path,
    best: tuple[str, dict[str, Any]] | None = None,
) -> None:
    """Plot metrics by epoch.

    Args:
        history: rows of metrics.csv.
        panels: what to show, from left to right.
        path: PNG to write.
        best: a column and the row that is marked in it.
    """
    epochs = [row["epoch"] for row in history]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.6), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        marker = "o" if len(history) == 1 else None  # one epoch has no line
        for label, column in panel.columns.items():
            axis.plot(epochs, [row[column] for row in history], label=label, marker=marker)
        axis.set(title=panel.title, xlabel="epoch", ylabel=panel.unit)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if len(panel.columns) > 1:
            axis.legend()
        if best is not None and best[0] in panel.columns.values():
            _mark(axis, *best)
    save(figure, path)


def _mark(axis: Axes, column: str, row: dict[str, Any]) -> None:
    axis.plot(row["epoch"], row[column], "o", color="C1")
    axis.set_title(f"{axis.get_title()}, best {row[column]:.2f}, epoch {row['epoch']}")
