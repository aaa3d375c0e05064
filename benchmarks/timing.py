"""Candidates measured by turns in one process (A B C A B C …): medians after warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

ROUNDS = 7
WARM_UP = 2


def by_turns(candidates: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(WARM_UP + rounds):
        for name, call in candidates.items():
            started = time.perf_counter()
            call()
            if turn >= WARM_UP:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in taken.items()}
