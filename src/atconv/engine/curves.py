"""Learning curves, for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from atconv.plots import plt, save

__all__ = ["Panel", "draw_curves"]


class Panel(NamedTuple):
    """One plot: its title, its vertical axis, and the columns of metrics.csv that it shows, by label."""

    title: str
    unit: str
    columns: Mapping[str, str]


def draw_curves(
    history: Sequence[dict[str, Any]],
    panels: Sequence[Panel],
    path: Path,
    best: tuple[str, dict[str, Any]] | None = None,
) -> None:
    """Draw figures by epoch.

    Args:
        history: rows of metrics.csv.
        panels: what to show, side by side.
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
