"""From a study's rows to means and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from atconv.tasks.classification.study.results import Result

__all__ = ["Summary", "paired_differences", "summarize"]


@dataclass(frozen=True)
class Summary:
    """What the runs of one variant say."""

    variant: str
    seeds: int
    parameters: int
    macs: int
    mean: float
    """top-1, percent"""
    deviation: float
    """of single runs; 0 for one"""
    difference: float | None
    """mean of variant − reference over the seeds that both have; None for the reference"""
    half_width: float | None
    """of the difference's 95 % interval; None with fewer than two pairs"""


def summarize(results: Sequence[Result], reference: str) -> list[Summary]:
    """Means, spreads and paired differences, in the order of first rows."""
    found = []
    for name in dict.fromkeys(result.variant for result in results):
        mine = [result for result in results if result.variant == name]
        values = [result.top1 for result in mine]
        pairs = [] if name == reference else paired_differences(results, name, reference)
        half = None
        if len(pairs) > 1:
            quantile = float(stats.t.ppf(0.975, len(pairs) - 1))
            half = quantile * statistics.stdev(pairs) / len(pairs) ** 0.5
        found.append(
            Summary(
                name,
                len(mine),
                mine[0].parameters,
                mine[0].macs,
                statistics.mean(values),
                statistics.stdev(values) if len(values) > 1 else 0.0,
                statistics.mean(pairs) if pairs else None,
                half,
            )
        )
    return found


def paired_differences(results: Sequence[Result], variant: str, reference: str) -> list[float]:
    """Top-1 of a variant less that of the reference, for every seed that both have."""
    top1 = {result.run: result.top1 for result in results}
    return [
        own - top1[reference, seed]
        for (name, seed), own in top1.items()
        if name == variant and (reference, seed) in top1
    ]
