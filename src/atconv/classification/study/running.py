"""The runs of a study, one after another: those that have a row are not run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from atconv.classification.study.plan import Study, Variant, multiply_adds
from atconv.classification.train import resume, train
from atconv.training.checkpoint import read_rows, write_rows
from atconv.training.progress import plain_console

__all__ = ["run_study"]


def run_study(
    study: Study,
    out: Path,
    console: Console | None = None,
    jobs: Sequence[tuple[Variant, int]] | None = None,
) -> Path:
    """Train and test every variant that has no row yet.

    Args:
        study: from `read_study`.
        out: folder with a run for each job, and results.csv.
        console: where progress shows.
        jobs: only these variants and seeds.

    Returns:
        results.csv.
    """
    console, table = console or plain_console(), out / "results.csv"
    for variant, seed in study.jobs if jobs is None else jobs:
        rows = read_rows(table)
        if any(row["variant"] == variant.name and int(row["seed"]) == seed for row in rows):
            continue
        run = out / "runs" / f"{variant.name}-{seed}".replace(" ", "-").replace("/", "-")
        console.print(f"{variant.name}, seed {seed}: {run}", soft_wrap=True)
        if (run / "config.yaml").is_file():
            resume(run)
        else:
            train(study.config(variant, seed), run)
        measured = json.loads((run / "metrics.json").read_text())
        row = {
            "variant": variant.name,
            "seed": seed,
            "top1": measured["top1"],
            "parameters": study.parameters(variant, study.widths[variant.name]),
            "multiply_adds": multiply_adds(study, variant),
            "seconds": f"{sum(float(epoch['seconds']) for epoch in read_rows(run / 'metrics.csv')):.0f}",
            "widths": " ".join(map(str, study.widths[variant.name])),
        }
        write_rows(table, [*rows, row])
    return table
