"""Medians of interleaved calls, A B C A B C …: whatever slows the machine slows all candidates alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["ROUNDS", "WARM_UP", "median_seconds"]

Key = TypeVar("Key")

ROUNDS, WARM_UP = 7, 2


def median_seconds(candidates: Mapping[Key, Callable[[], object]], rounds: int = ROUNDS) -> dict[Key, float]:
    """Median seconds of each candidate's calls, after two rounds of warm-up.

    Args:
        candidates: what is called once a round, in this order. On an accelerator a call must wait until the
            work is done.
        rounds: timed calls of each candidate.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in candidates}
    for _ in range(WARM_UP + rounds):
        for name, call in candidates.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(timed[WARM_UP:]) for name, timed in seconds.items()}
