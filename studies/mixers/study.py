"""The same network, recipe, data order and size, one token mixer after another: which is right more often?

    python -m studies.mixers.study time SET       # seconds of all variants, on an idle machine
    python -m studies.mixers.study pilot SET      # the first runs: what will it take, what can it show?
    python -m studies.mixers.study run SET        # every row that is missing, in any number of steps
    python -m studies.mixers.study report SET     # table and plot of the rows that are there

    python -m studies.mixers.study recipes natural    # choose the recipe, by a static 7×7

SET is fashion_mnist, cued_garments or natural: SET.yaml says what is compared, as `atconv study` reads it.
Dims are adjusted until each variant has the parameters of the reference to 2 %. SET_alone is the same without
the 3×3 convolution of the channel mixer: there the token mixer alone mixes space within a stage.
"""

from __future__ import annotations

import logging
import statistics
from argparse import Namespace
from collections.abc import Mapping, Sequence
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
from studies.mixers.plots import compare_variants, plot_inhibition
from studies.mixers.recipes import try_recipes
from studies.mixers.routing import top1_with_other_kernels

HERE = Path(__file__).parent
_ALONE = "_alone"


def plan(args: Namespace) -> tuple[Sweep, Sequence[Job]]:
    study = match_dims(described(args))
    return make_sweep(study, args.out / args.data, args.runs / args.data), study.jobs


def described(args: Namespace) -> Study:
    """What SET.yaml says, on the device that was asked for."""
    study = read_set(args.data)
    return replace(study, recipe=replace(study.recipe, **harness.machine_options(args)))


def read_set(name: str) -> Study:
    """The study of SET or SET_alone."""
    file = name.removesuffix(_ALONE)
    study = read_study(HERE / f"{file}.yaml")
    if name == file:
        return study
    model_args = study.recipe.model_args | {"glu_conv": False}
    return replace(study, recipe=replace(study.recipe, model_args=model_args))


def make_sweep(study: Study, out: Path, runs: Path) -> Sweep:
    """The study's runs. Their rows also have λ, and what the model is worth with other kernels."""
    sweep = prepare_sweep(study, out, train_or_resume, runs)
    return replace(sweep, make_row=partial(_add_explanation, sweep.make_row, study.recipe.device))


def _add_explanation(make_row: Any, device: str, job: Job, run: Path) -> dict[str, Any]:
    columns = make_row(job, run)
    means, deviation = inhibition_of(run)
    return (
        columns
        | {
            "inhibition": means[-1] if means else None,
            "inhibition_spread": deviation,
            "inhibition_by_epoch": " ".join(f"{mean:.4f}" for mean in means),
        }
        | top1_with_other_kernels(run, device)
    )


def inhibition_of(run: Path) -> tuple[list[float], float | None]:
    """Mean of λ over the channels of all layers after each epoch, and its deviation after the last."""
    by_epoch: dict[str, list[float]] = {}
    for row in read_rows(run / "inhibition.csv"):  # the file has thousandths
        by_epoch.setdefault(row["epoch"], []).extend(int(each) / 1000 for each in row["channels"].split())
    if not by_epoch:
        return [], None
    means = [round(statistics.mean(values), 4) for values in by_epoch.values()]
    return means, round(statistics.pstdev(list(by_epoch.values())[-1]), 4)


def time(args: Namespace) -> None:
    print(time_study(match_dims(described(args)), args.out / args.data).read_text())


def pilot(args: Namespace) -> None:
    study = match_dims(described(args))
    sweep = make_sweep(study, args.out / args.data, args.runs / args.data)
    path = pilot_study(study, sweep, partial(harness.run_side_by_side, sweep, processes=args.jobs))
    print(path.read_text())
    hours = sum(float(row["hours"]) for row in read_rows(path))
    print(f"{len(study.jobs)} runs, {hours:.1f} hours; smallest difference: at 80 % power, 5 % level")


def recipes(args: Namespace) -> None:
    """What a static 7×7 reaches on held-out training images with each recipe of SET_recipes.yaml."""
    study = match_dims(described(args))
    sweep, jobs = try_recipes(
        study, HERE / f"{args.data}_recipes.yaml", args.out / args.data, args.runs / args.data
    )
    harness.run_side_by_side(sweep, harness.select_jobs(jobs, args.seeds, args.only), args.jobs)
    if sweep.table.exists():
        print(sweep.table.read_text())


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
    rows = read_rows(out / "results.csv")
    extra |= {
        header: cells
        for header, column in (
            ("top-1, kernels averaged", "top1_averaged_kernels"),
            ("top-1, another image's kernels", "top1_another_images_kernels"),
            ("λ", "inhibition"),
        )
        if (cells := _means(rows, column))
    }
    summaries = report_study(out, study.variants, study.reference, extra)
    title = harness.TITLES[args.data.removesuffix(_ALONE)]
    if args.data.endswith(_ALONE):
        title += ", channel mixers without convolution"
    if len(summaries) > 1:
        what = f"networks of equal size, {study.recipe.epochs} epochs, a token mixer in every block"
        compare_variants(summaries, study.reference, f"{title}: {what}", out / "results.png")
    if any(row.get("inhibition_by_epoch") for row in rows):
        names = [summary.variant for summary in summaries]
        plot_inhibition(rows, names, f"{title}: strength of inhibition", out / "inhibition.png")


def _means(rows: Sequence[Mapping[str, str]], column: str) -> dict[str, str]:
    """Mean ± deviation of a column over the seeds of each variant that has it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.get(column):
            values.setdefault(row["variant"], []).append(float(row[column]))
    return {name: harness.mean_and_deviation(each, ".4g", ".2g") for name, each in values.items()}


if __name__ == "__main__":
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    stages = {"time": time, "pilot": pilot, "recipes": recipes}
    harness.main(__doc__, HERE, plan, report, stages, ("run", "report", *stages))
