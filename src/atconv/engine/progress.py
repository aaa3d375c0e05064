"""How far a long loop is: a bar on a terminal, elsewhere a line in the log every minute."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from operator import length_hint
from typing import TypeVar

from tqdm import tqdm

__all__ = ["Heartbeat", "heartbeat", "progress"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
_SECONDS = 60.0


class Heartbeat:
    """Says when the next line in the log is due."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        self.last = time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self.last < self.seconds:
            return False
        self.restart()
        return True


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """`items`, with a bar on a terminal, elsewhere with a `heartbeat`.

    Args:
        total: how many there are, where `items` has no length.
    """
    if sys.stderr.isatty():
        return iter(tqdm(items, description, total, leave=False))
    return heartbeat(items, description, total)


def heartbeat(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """`items`, while the log says every minute how many there were and how long the others take."""
    total = total or length_hint(items)
    beat, started = Heartbeat(_SECONDS), time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if not beat.due():
            continue
        if not total:
            logger.info("%s: %d", description, count)
        else:
            seconds = (time.monotonic() - started) / count * (total - count)
            logger.info("%s: %d of %d, %s left", description, count, total, timedelta(seconds=round(seconds)))
