"""Which recipe? Tried with a static 7×7, so that none is chosen for ATConv, on held-out training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from atconv.engine.devices import available_precision, resolve_device
from atconv.engine.reading import read_yaml
from atconv.io import read_rows
from atconv.tasks import train_or_resume
from atconv.tasks.classification.study import Study
from atconv.tasks.common.sweep import Job, Sweep, seed_by_seed

__all__ = ["try_recipes"]

_TRIED_WITH = "depthwise 7×7"


def try_recipes(study: Study, file: Path, out: Path, runs: Path) -> tuple[Sweep, Sequence[Job]]:
    """A run for each recipe of a file: names and the options that differ from the study's recipe.

    Returns:
        the sweep, whose table is OUT/recipes.csv, and its jobs.

    Raises:
        FileNotFoundError: the study has no such file.
    """
    recipes = read_yaml(file)
    device = resolve_device(study.recipe.device)
    precision = available_precision(study.recipe.precision, device.type)
    make_row = partial(_make_row, study, recipes)
    sweep = Sweep(out / "recipes.csv", runs / "recipes", make_row, device, precision, column="recipe")
    return sweep, seed_by_seed(dict.fromkeys(recipes, 1))


def _make_row(study: Study, recipes: dict[str, dict[str, Any]], job: Job, run: Path) -> dict[str, Any]:
    options = dict(recipes[job.variant])
    base = study.config(study.variants[_TRIED_WITH], job.seed)
    model_args = base.model_args | options.pop("model_args", {})
    train_or_resume(replace(base, model_args=model_args, **options), run)
    epochs = read_rows(run / "metrics.csv")
    return {
        "val_top1": max(float(epoch["val_top1"]) for epoch in epochs),
        "seconds": round(sum(float(epoch["seconds"]) for epoch in epochs)),
    }
