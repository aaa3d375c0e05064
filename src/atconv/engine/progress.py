"""What a person sees while a run trains: bars on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

__all__ = ["LoggedConsole", "TrainingBars", "make_table", "plain_console", "track"]

T = TypeVar("T")
_PIPE_WIDTH = 200


def plain_console() -> Console:
    """A console that prints names as they are: [brackets] are not markup, pipes do not fold lines."""
    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


class LoggedConsole(Console):
    """A plain console whose lines also go to a file, where a run keeps them."""

    def __init__(self, path: Path) -> None:
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        super().__init__(markup=False, highlight=False, width=width)
        self._log = Console(file=path.open("a"), width=120, markup=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        self._log.print(*objects, **options)
        self._log.file.flush()


class TrainingBars:
    """An epoch bar and a step bar with live figures. Silent when the console is not a terminal."""

    def __init__(self, console: Console, epochs: int, done_epochs: int = 0) -> None:
        self._console = console
        self._bars = _progress(console)
        self._epochs = self._bars.add_task("epochs", total=epochs, completed=done_epochs, figures="")
        self._steps = self._bars.add_task("steps", total=None, figures="")

    @contextmanager
    def shown(self) -> Iterator[TrainingBars]:
        with self._bars:
            yield self

    def start_epoch(self, steps: int, done: int) -> None:
        self._bars.reset(self._steps, total=steps, completed=done, description="steps")

    def step(self, figures: str) -> None:
        self._bars.update(self._steps, advance=1, figures=figures)

    def end_epoch(self, line: str) -> None:
        self._bars.update(self._epochs, advance=1)
        self._bars.console.print(line, soft_wrap=True)


def track(
    items: Iterable[T], console: Console, description: str, total: int | None = None
) -> Generator[T, None, None]:
    """Iterate with a bar on a terminal, silently elsewhere."""
    with _progress(console) as bars:
        task = bars.add_task(description, total=total, figures="")
        for item in items:
            yield item
            bars.advance(task)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Table:
    """A table whose first `left` columns are text and the others figures."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
