"""What all pictures share: files only, names taken as they are, readable at 100 %."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

mpl.use("Agg")  # files only: no display is needed
mpl.rcParams["text.parse_math"] = False  # a class may be called "$"

__all__ = ["DPI", "plt", "save", "shorten"]

DPI = 110


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write a PNG and let go of the figure."""
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def shorten(name: str, most: int = 18) -> str:
    """A name that fits beside a plot."""
    return name if len(name) <= most else name[: most - 1] + "…"
