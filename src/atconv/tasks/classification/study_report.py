"""From the rows of a study to a table with paired differences."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atconv.engine.tables import Table
from atconv.io import read_rows, write_atomically
from atconv.tasks.common.sweep import confidence_half_width, paired_differences

__all__ = ["Result", "Summary", "read_results", "report_study", "summarize"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A row of results.csv."""

    variant: str
    seed: int
    top1: float
    """on test images, percent"""
    parameters: int
    macs: int
    seconds: float
    """of training, on a machine that may have had other work"""
    dims: str


def read_results(path: Path) -> list[Result]:
    """The rows; none where there is no file.

    Raises:
        ValueError: a column is missing, a value is not a number, or two rows are of one run.
    """
    results: dict[tuple[str, int], Result] = {}
    for line, row in enumerate(read_rows(path), start=2):
        try:
            result = Result(
                row["variant"],
                int(row["seed"]),
                float(row["top1"]),
                int(row["parameters"]),
                int(row["macs"]),
                float(row["seconds"]),
                row["dims"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {line} is not a row of a study: {error!r}; delete it, its run is still there"
            ) from error
        if (result.variant, result.seed) in results:
            raise ValueError(
                f"{path}, line {line}: {result.variant}, seed {result.seed} has a row already: delete one"
            )
        results[result.variant, result.seed] = result
    return list(results.values())


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
    top1 = {(result.variant, result.seed): result.top1 for result in results}
    summaries = []
    for name in dict.fromkeys(result.variant for result in results):
        own = [result for result in results if result.variant == name]
        values = [result.top1 for result in own]
        pairs = [] if name == reference else paired_differences(top1, name, reference)
        summaries.append(
            Summary(
                name,
                len(own),
                own[0].parameters,
                own[0].macs,
                statistics.mean(values),
                statistics.stdev(values) if len(values) > 1 else 0.0,
                statistics.mean(pairs) if pairs else None,
                confidence_half_width(pairs),
            )
        )
    return summaries


def report_study(
    out: Path,
    variants: Iterable[str],
    reference: str,
    extra_columns: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Summary]:
    """Write a table of the rows so far to results.md, and log it.

    Args:
        out: the study's folder.
        variants: their names, in the table's order.
        reference: the variant that the others are compared with.
        extra_columns: header → variant → cell.

    Raises:
        ValueError: there are no rows.
    """
    results = read_results(out / "results.csv")
    if not results:
        raise ValueError(f"{out / 'results.csv'} has no rows yet: no run has ended")
    order = {name: place for place, name in enumerate(variants)}
    results.sort(key=lambda result: order.get(result.variant, len(order)))
    summaries, extra = summarize(results, reference), extra_columns or {}
    headers = ("mixer", "seeds", "top-1, %", f"minus {reference} [95 %]", "parameters", "MACs (M)", *extra)
    rows = [(*_cells(s), *(cells.get(s.variant, "") for cells in extra.values())) for s in summaries]
    ruler = ("---", *["---:"] * (len(headers) - 1))
    markdown = "".join(f"| {' | '.join(row)} |\n" for row in (headers, ruler, *rows))
    write_atomically(out / "results.md", lambda path: path.write_text(markdown, encoding="utf-8"))
    logger.info("%s", Table(str(out), headers, rows))
    return summaries


def _cells(summary: Summary) -> tuple[str, ...]:
    spread = f" ± {summary.deviation:.2f}" if summary.seeds > 1 else ""
    difference = "" if summary.difference is None else f"{summary.difference:+.2f}"
    interval = "" if summary.half_width is None else f" ± {summary.half_width:.2f}"
    return (
        summary.variant,
        str(summary.seeds),
        f"{summary.mean:.2f}{spread}",
        difference + interval,
        f"{summary.parameters:,}",
        f"{summary.macs / 1e6:.1f}",
    )
