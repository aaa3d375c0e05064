"""From a study's rows to means, paired differences, a table and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from scipy import stats

from atconv.classification.figures import accuracy_against_cost
from atconv.classification.study.plan import Study
from atconv.training.checkpoint import read_rows
from atconv.training.progress import make_table, plain_console

__all__ = ["Summary", "paired_differences", "report_study", "summarise"]


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


def report_study(study: Study, out: Path, console: Console | None = None) -> Path:
    """Print a table of the rows so far and draw results.png. Returns the picture.

    Raises:
        ValueError: there are no rows.
    """
    rows = read_rows(out / "results.csv")
    if not rows:
        raise ValueError(f"{out / 'results.csv'} has no rows yet: no run has ended")
    order = {variant.name: place for place, variant in enumerate(study.variants)}
    rows.sort(key=lambda row: order.get(row["variant"], len(order)))
    found, times = summarise(rows, study.reference), {r["variant"]: r for r in read_rows(out / "timing.csv")}
    cells = []
    for one in found:
        spread = f" ± {one.deviation:.2f}" if one.seeds > 1 else ""
        difference = "" if one.difference is None else f"{one.difference:+.2f}"
        interval = "" if one.half_width is None else f" ± {one.half_width:.2f}"
        seconds = times.get(one.variant, {})
        cells.append(
            (
                one.variant,
                str(one.seeds),
                f"{one.mean:.2f}{spread}",
                difference + interval,
                f"{one.parameters:,}",
                f"{one.multiply_adds / 1e6:.1f}",
                seconds.get("training_step", ""),
                seconds.get("inference_batch", ""),
            )
        )
    heads = (
        "mixer", "seeds", "top-1, %", f"against {study.reference} [95 %]", "parameters", "MMACs",
        "s a training batch", "s an inference batch",
    )  # fmt: skip
    (console or plain_console()).print(make_table(str(out), heads, cells))
    points = [(one.variant, one.multiply_adds / 1e6, one.mean, one.deviation) for one in found]
    title = f"{study.recipe.data}: one network, {study.recipe.epochs} epochs, a token mixer in every block"
    accuracy_against_cost(points, study.reference, title, out / "results.png")
    return out / "results.png"
