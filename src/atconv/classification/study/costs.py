"""What a study costs and what it can show: seconds by variant, and a pilot of its first runs."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from scipy import stats

from atconv.classification.study.plan import Study
from atconv.classification.study.report import paired_differences
from atconv.classification.study.running import run_study
from atconv.training.checkpoint import read_rows, write_rows
from atconv.training.progress import make_table, plain_console

__all__ = ["pilot_study", "smallest_difference", "time_study"]

_ROUNDS, _WARM_UP = 7, 2
_PILOT_SEEDS = 3


def time_study(study: Study, out: Path, console: Console | None = None) -> Path:
    """Seconds of a training step and of a forward pass of every variant, by turns in one process, as the
    recipe has batch and precision. Returns timing.csv."""
    console = console or plain_console()
    recipe = study.recipe
    models = {variant.name: study.build(variant) for variant in study.variants}
    images = torch.randn(recipe.batch_size, recipe.in_chans, recipe.image_size, recipe.image_size)
    steps: dict[str, list[float]] = {name: [] for name in models}
    passes: dict[str, list[float]] = {name: [] for name in models}
    dtype = torch.float32 if recipe.precision == "fp32" else torch.bfloat16
    for turn in range(_WARM_UP + _ROUNDS):
        for name, model in models.items():
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                started = time.perf_counter()
                model.train()(images).float().logsumexp(1).mean().backward()
                between = time.perf_counter()
                with torch.inference_mode():
                    model.eval()(images)
                ended = time.perf_counter()
            if turn >= _WARM_UP:
                steps[name].append(between - started)
                passes[name].append(ended - between)
    rows = [
        {
            "variant": name,
            "training_step": f"{statistics.median(steps[name]):.4f}",
            "inference_batch": f"{statistics.median(passes[name]):.4f}",
            "batch": recipe.batch_size,
        }
        for name in models
    ]
    write_rows(out / "timing.csv", rows)
    shown = [[str(value) for value in row.values()] for row in rows]
    console.print(make_table("seconds a batch", list(rows[0]), shown))
    return out / "timing.csv"


def pilot_study(study: Study, out: Path, console: Console | None = None) -> Path:
    """Run the first three seeds of the reference and of the first variant beside it, and say what all runs
    will take and what differences they can show.

    The runs count: `run_study` goes on from them. Seconds of the other variants follow from timing.csv.

    Returns:
        pilot.csv: for each variant its seeds, seconds a run, hours, and the smallest difference to the
        reference, in points, that they show.

    Raises:
        ValueError: seconds were not measured for every variant, or there are too few runs for a pilot.
    """
    console = console or plain_console()
    seconds = {row["variant"]: float(row["training_step"]) for row in read_rows(out / "timing.csv")}
    missing = [variant.name for variant in study.variants if variant.name not in seconds]
    if missing:
        raise ValueError(f"seconds of {', '.join(missing)} are not measured yet: run --stage time first")
    reference = next(v for v in study.variants if v.name == study.reference)
    others = [v for v in study.variants if v is not reference and min(v.seeds, reference.seeds) > 1]
    if not others:
        raise ValueError("a pilot takes two variants with two seeds or more")
    seeds = range(min(_PILOT_SEEDS, reference.seeds, others[0].seeds))
    table = run_study(study, out, console, [(v, seed) for seed in seeds for v in (reference, others[0])])
    ran = [row for row in read_rows(table) if int(row["seed"]) in seeds]
    a_run = statistics.median(float(row["seconds"]) for row in ran if row["variant"] == reference.name)
    deviation = statistics.stdev(paired_differences(ran, others[0].name, reference.name))
    rows: list[dict[str, str]] = []
    for variant in study.variants:
        took = a_run * seconds[variant.name] / seconds[reference.name]
        pairs = min(variant.seeds, reference.seeds)
        shown = f"{smallest_difference(deviation, pairs):.2f}" if pairs > 1 else ""
        rows.append(
            {
                "variant": variant.name,
                "seeds": str(variant.seeds),
                "seconds_a_run": f"{took:.0f}",
                "hours": f"{took * variant.seeds / 3600:.2f}",
                "smallest_difference": "" if variant is reference else shown,
            }
        )
    write_rows(out / "pilot.csv", rows)
    hours = sum(float(row["hours"]) for row in rows)
    title = f"{sum(v.seeds for v in study.variants)} runs, {hours:.1f} hours"
    console.print(make_table(title, list(rows[0]), [list(row.values()) for row in rows]))
    return out / "pilot.csv"


def smallest_difference(deviation: float, pairs: int) -> float:
    """The mean paired difference that is found with 80 % power at the 5 % level, two-sided.

    Args:
        deviation: standard deviation of single paired differences.
        pairs: how many there will be, 2 or more.
    """
    quantiles = stats.t.ppf(0.975, pairs - 1) + stats.t.ppf(0.8, pairs - 1)
    return float(quantiles * deviation / pairs**0.5)
