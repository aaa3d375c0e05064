"""The same network, recipe, data order and size, one token mixer after another: which is right more often?

    python -m studies.mixers.study time SET       # seconds of all variants, on an idle machine
    python -m studies.mixers.study pilot SET      # the first runs: what will it take, what can it show?
    python -m studies.mixers.study run SET        # every row that is missing, in any number of steps
    python -m studies.mixers.study report SET     # table and plot of the rows that are there

SET is fashion_mnist or cued_garments: SET.yaml says what is compared, as `atconv study` reads it. Dims are
adjusted until each variant has the reference's parameters to 2 %.
"""

from __future__ import annotations

import logging
import statistics
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from atconv.io import read_rows
from atconv.tasks import train_or_resume
from atconv.tasks.classification.study import Study, prepare_sweep, read_study
from atconv.tasks.classification.study_report import report_study
from atconv.tasks.common.sweep import Job, Sweep
from studies import harness
from studies.mixers.costs import pilot_study, time_study
from studies.mixers.matching import match_dims
from studies.mixers.plots import compare_variants

HERE = Path(__file__).parent


def plan(args: Namespace) -> tuple[Sweep, Sequence[Job]]:
    study = match_dims(described(args))
    return make_sweep(study, args.out / args.data, args.runs / args.data), study.jobs


def described(args: Namespace) -> Study:
    """What SET.yaml says, on the device that was asked for."""
    study = read_study(HERE / f"{args.data}.yaml")
    return replace(study, recipe=replace(study.recipe, device=args.device.type))


def make_sweep(study: Study, out: Path, runs: Path) -> Sweep:
    """The study's runs. Their rows also have λ."""
    sweep = prepare_sweep(study, out, train_or_resume, runs)
    return replace(sweep, make_row=partial(_add_inhibition, sweep.make_row))


def _add_inhibition(make_row: Any, job: Job, run: Path) -> dict[str, Any]:
    columns = make_row(job, run)
    mean, deviation = inhibition_of(run)
    return columns | {"inhibition": mean, "inhibition_spread": deviation}


def inhibition_of(run: Path) -> tuple[float | None, float | None]:
    """Mean and standard deviation of λ over the channels of all layers after a run's last epoch."""
    rows = read_rows(run / "inhibition.csv")
    last = [row["channels"].split() for row in rows if row["epoch"] == rows[-1]["epoch"]]
    values = [int(channel) / 1000 for channels in last for channel in channels]  # the file has thousandths
    if not values:
        return None, None
    return round(statistics.mean(values), 4), round(statistics.pstdev(values), 4)


def time(args: Namespace) -> None:
    print(time_study(match_dims(described(args)), args.out / args.data).read_text())


def pilot(args: Namespace) -> None:
    study = match_dims(described(args))
    sweep = make_sweep(study, args.out / args.data, args.runs / args.data)
    path = pilot_study(study, sweep, partial(harness.run_side_by_side, sweep, processes=args.jobs))
    print(path.read_text())
    hours = sum(float(row["hours"]) for row in read_rows(path))
    print(f"{len(study.jobs)} runs, {hours:.1f} hours; smallest difference: at 80 % power, 5 % level")


def report(args: Namespace) -> None:
    """Write results.md and results.png next to the rows."""
    study, out = described(args), args.out / args.data
    times = {row["variant"]: row for row in read_rows(out / "timing.csv")}
    batch = next((row["batch"] for row in times.values()), "")
    extra = {
        f"ms to {verb} {batch} images": {
            name: f"{1000 * float(row[kind]):.0f}" for name, row in times.items()
        }
        for verb, kind in (("train on", "training_step"), ("infer", "inference_batch"))
        if times
    }
    summaries = report_study(out, study.variants, study.reference, extra)
    title = f"{args.data}: one network, {study.recipe.epochs} epochs, a token mixer in every block"
    compare_variants(summaries, study.reference, title, out / "results.png")


if __name__ == "__main__":
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    harness.main(
        __doc__, HERE, plan, report, {"time": time, "pilot": pilot}, ("run", "report", "time", "pilot")
    )
