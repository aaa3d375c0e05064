"""What all plots share: files only, names taken as they are, readable at 100 %. And learning curves."""

from __future__ import annotations

import functools
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

mpl.use("Agg")  # files only: no display is needed
mpl.rcParams["text.parse_math"] = False  # a class may be called "$"

# Letters that DejaVu Sans lacks come from the first of these that is installed and has them.
_EAST_ASIAN = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "PingFang SC", "Hiragino Sans", "Arial Unicode MS",
)  # fmt: skip
_INSTALLED = {font.name for font in font_manager.fontManager.ttflist}
mpl.rcParams["font.family"] = ["DejaVu Sans", *(name for name in _EAST_ASIAN if name in _INSTALLED)]

__all__ = ["DPI", "Panel", "class_labels", "plot_curves", "plt", "save", "shorten"]

DPI = 110


class Panel(NamedTuple):
    """One set of axes: its title, its vertical label, and the columns of metrics.csv in it, by label."""

    title: str
    unit: str
    columns: Mapping[str, str]


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write a PNG and let go of the figure. What is no text in names, such as control characters and bytes
    that are not UTF-8, is escaped."""
    for text in figure.findobj(Text):
        text.set_text("".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text.get_text()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # a box is shown where no font has it
        figure.savefig(path, dpi=dpi)
    plt.close(figure)


def shorten(name: str, length: int = 18) -> str:
    """A name that fits next to a plot: a letter of double width counts twice. What is no text, or in none of
    the fonts, is escaped."""
    parts = [letter if _is_shown(letter) else _escape(letter) for letter in name]
    double = [len(part) == 1 and unicodedata.east_asian_width(part) in "WF" for part in parts]
    ends = list(accumulate((len(part) + wide for part, wide in zip(parts, double, strict=True)), initial=0))
    if ends[-1] <= length:
        return "".join(parts)
    return "".join(parts[: sum(end < length for end in ends) - 1]) + "…"


def class_labels(names: Sequence[str], length: int = 18) -> list[str]:
    """Names of classes that fit next to a plot, no two alike: those that no font shows, and those that are
    the same once they are shortened, begin with the number of the class."""
    short = [shorten(name, length) for name in names]
    counts = Counter(short)
    return [
        text if counts[text] == 1 and all(map(_is_shown, name)) else shorten(f"{i}: {name}", length)
        for i, (name, text) in enumerate(zip(names, short, strict=True))
    ]


def _is_shown(letter: str) -> bool:
    return letter.isprintable() and ord(letter) in _letters()


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


@functools.cache
def _letters() -> set[int]:
    """What the fonts in use can show."""
    files = [font_manager.findfont(family) for family in mpl.rcParams["font.family"]]
    return {letter for file in files for letter in font_manager.get_font(file).get_charmap()}


def plot_curves(
    history: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel],
    path: Path,
    best: tuple[str, Mapping[str, Any]] | None = None,
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
        if len(epochs) == 1:
            axis.set_xticks(epochs)
            axis.margins(y=1.0)  # room for the legend
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if len(panel.columns) > 1:
            axis.legend()
        if best is not None and best[0] in panel.columns.values():
            _mark(axis, *best)
    save(figure, path)


def _mark(axis: Axes, column: str, row: Mapping[str, Any]) -> None:
    axis.plot(row["epoch"], row[column], "o", color="C1")
    axis.set_title(f"{axis.get_title()}\nbest {row[column]:.2f}, epoch {row['epoch']}")
