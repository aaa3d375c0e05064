"""Tables as plain text, for logs and terminals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from atconv.io import escape_row, first_few

__all__ = ["Table", "interval_text", "over_classes", "percent_text", "speed_text"]


def percent_text(value: float | None) -> str:
    """A percentage; – where there was nothing to measure."""
    return "–" if value is None else f"{value:.1f} %"


def interval_text(value: float, interval: Sequence[float]) -> str:
    """A percentage with its interval."""
    return f"{value:.2f} %  [{interval[0]:.2f}, {interval[1]:.2f}]"


def speed_text(images_per_second: float) -> str:
    """Images a second, or where that is less than one, seconds an image."""
    if images_per_second < 1:
        return f"{1 / images_per_second:.1f} s an image"
    return f"{images_per_second:.0f} images/s"


def over_classes(count: int, absent: Sequence[str]) -> str:
    """What follows a mean over classes where some of them are absent, of which the mean says nothing."""
    return f" over {count - len(absent)} of {count} classes, without {first_few(absent)}" if absent else ""


class Table(NamedTuple):
    """Rows under column heads; the first `text_columns` are text, the others numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1

    def __str__(self) -> str:
        cells = [escape_row(self.columns), *map(escape_row, self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]

        def line(row: Sequence[str]) -> str:
            padded = (
                cell.ljust(width) if i < self.text_columns else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            return "  ".join(padded).rstrip()

        rule = "  ".join("─" * width for width in widths)
        return "\n".join([self.title, line(cells[0]), rule, *map(line, cells[1:])])
