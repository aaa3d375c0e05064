"""Candidates measured by turns, A B C A B C …, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

__all__ = ["ROUNDS", "TURNS", "WARM_UP", "interleaved"]

Key = TypeVar("Key")

ROUNDS, WARM_UP = 7, 2
TURNS = WARM_UP + ROUNDS


def interleaved(
    candidates: Mapping[Key, Callable[[], object]], turns: Iterable[object] = range(TURNS)
) -> dict[Key, float]:
    """Median seconds of each call, after two turns of warm-up.

    Args:
        candidates: what is called. On an accelerator it must wait until the work is done.
        turns: one entry a turn, three or more; a progress bar around a range shows how far it is.
    """
    taken: dict[Key, list[float]] = {name: [] for name in candidates}
    for _ in turns:
        for name, call in candidates.items():
            started = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[WARM_UP:]) for name, seconds in taken.items()}
