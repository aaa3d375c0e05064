"""Attention, hybrid or ATConv in a small SiT on Fashion-MNIST: same depth, width, steps, data and seeds.

    python -m studies.generation.study time               # seconds a step and a sample; idle machine
    python -m studies.generation.study pilot DATA_ROOT    # short runs: what will it take, what can it show?
    python -m studies.generation.study run DATA_ROOT      # every row that is missing, in any number of steps
    python -m studies.generation.study report             # tables and plots of the rows that are there

DATA_ROOT is what `python -m studies.datasets.fashion_mnist DATA_ROOT` wrote. Time is measured apart, so runs
may share their machine.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import atconv
from atconv.tasks import train_or_resume
from atconv.tasks.common.sweep import Job, Sweep, seed_by_seed
from atconv.tasks.generation.config import GenerationConfig
from atconv.tasks.generation.sampling import SamplerConfig
from studies import harness
from studies.generation import report, timing
from studies.generation.setup import CLASSIFIER, FAMILIES, GUIDANCE, HERE, SAMPLES, SEEDS, STEPS, read_recipe

METRICS = {
    "frechet_distance": "frechet_distance",
    "kernel_distance": "kernel_distance",
    "sample_precision": "precision",  # a row's own precision is that of the training
    "sample_recall": "recall",
    "classifier_accuracy": "classifier_accuracy",
    "evaluations_per_image": "evaluations_per_image",
}
"""metric by column"""


def plan(args: Namespace) -> tuple[Sweep, Sequence[Job]]:
    sweep = make_sweep(args, args.out / "results.csv", args.runs, {})
    return sweep, seed_by_seed(dict.fromkeys(FAMILIES, SEEDS))


def make_sweep(args: Namespace, table: Path, runs: Path, options: dict[str, Any]) -> Sweep:
    """Runs of the recipe with some other options."""
    recipe = read_recipe() | {"data_root": args.data} | harness.machine_options(args) | options
    return Sweep(table, runs, partial(make_row, recipe, args.device), args.device, "fp32", column="family")


def make_row(recipe: dict[str, Any], device: torch.device, job: Job, run: Path) -> dict[str, Any]:
    """Train, sample and evaluate."""
    options = {"model": FAMILIES[job.variant], "seed": job.seed}
    return train_and_evaluate(recipe | options, device, run, CLASSIFIER)


def train_and_evaluate(
    recipe: dict[str, Any], device: torch.device, run: Path, classifier: Path
) -> dict[str, Any]:
    """Make the run of a recipe, or continue it, sample and evaluate in a classifier's features. Returns the
    columns of its row."""
    train_or_resume(GenerationConfig(**recipe), run)
    metrics = atconv.load(run).to(device).evaluate(
        recipe["data"],
        split="test",
        features=str(classifier),
        images=SAMPLES,
        batch_size=100,
        seed=recipe["seed"],
        options=SamplerConfig(sampler="heun", steps=STEPS, guidance=GUIDANCE),
    )  # fmt: skip
    training, evaluation = json.loads((run / "metrics.json").read_text()), metrics.to_dict()
    columns = {name: training[name] for name in ("parameters", "macs", "steps", "val_loss")}
    return columns | {column: evaluation[name] for column, name in METRICS.items()}


def pilot(args: Namespace) -> None:
    """One family, one epoch, all seeds."""
    sweep = make_sweep(args, args.out / "pilot.csv", args.runs / "pilot", {"epochs": 1})
    harness.run_side_by_side(sweep, seed_by_seed({"ATConv": SEEDS}), args.jobs)
    report.print_pilot(args.out)


if __name__ == "__main__":
    stages = {"time": timing.measure, "pilot": pilot}
    harness.main(__doc__, HERE, plan, report.report, stages, ("run", "pilot"))
