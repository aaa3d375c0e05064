"""From a study's rows to means and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

__all__ = ["Summary", "paired_differences", "summarise"]


@dataclass(frozen=True)
class Summary:
    """What the runs of one variant say."""

    variant: str
    seeds: int
    parameters: int
    multiply_adds: int
    mean: float
    """top-1, percent"""
    deviation: float
    """of single runs; 0 for one"""
    difference: float | None
    """mean of variant − reference over the seeds that both have; None for the reference"""
    half_width: float | None
    """of the difference's 95 % interval; None with fewer than two pairs"""


def summarise(rows: Sequence[dict[str, str]], reference: str) -> list[Summary]:
    """Means, spreads and paired differences, in the order of first rows."""
    found = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        values = [float(row["top1"]) for row in mine]
        pairs = [] if name == reference else paired_differences(rows, name, reference)
        half = None
        if len(pairs) > 1:
            quantile = float(stats.t.ppf(0.975, len(pairs) - 1))
            half = quantile * statistics.stdev(pairs) / len(pairs) ** 0.5
        found.append(
            Summary(
                name,
                len(mine),
                int(mine[0]["parameters"]),
                int(mine[0]["multiply_adds"]),
                statistics.mean(values),
                statistics.stdev(values) if len(values) > 1 else 0.0,
                statistics.mean(pairs) if pairs else None,
                half,
            )
        )
    return found


def paired_differences(rows: Sequence[dict[str, str]], variant: str, reference: str) -> list[float]:
    """Top-1 of a variant less that of the reference, for every seed that both have."""
    by_seed = {(row["variant"], row["seed"]): float(row["top1"]) for row in rows}
    return [
        top1 - by_seed[reference, seed]
        for (name, seed), top1 in by_seed.items()
        if name == variant and (reference, seed) in by_seed
    ]
