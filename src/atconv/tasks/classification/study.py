"""Compare token mixers on your data: the same network, recipe and data order, one mixer after another.

A study is a YAML file:

    reference: ATConv
    seeds: 8
    recipe: {data: my-images, model: attnet_xxs, …}               # fields of `atconv train`
    variants:
      ATConv: {token_mixer: atconv}
      depthwise 7×7: {token_mixer: depthwise, mixer_args: {kernel_size: 7}, dims: [40, 64, 128, 208]}
      pooling: {token_mixer: pooling, seeds: 3}
      attention late: {token_mixer: [atconv, atconv, attention, attention]}      # by stage

Each run adds a row to results.csv. A run that has a row is not run again, an interrupted run is continued.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import nn

from atconv.data.formats import open_sources
from atconv.engine.devices import available_precision, resolve_device
from atconv.engine.reading import read_json, read_yaml
from atconv.engine.recipes import continued_config
from atconv.engine.run import Run
from atconv.io import read_rows
from atconv.models.attnet import VARIANTS
from atconv.tasks.classification.config import ClassificationConfig, inherit_config
from atconv.tasks.classification.study_report import report_study
from atconv.tasks.common.sweep import Job, Sweep, seed_by_seed

__all__ = ["Study", "Variant", "prepare_sweep", "read_study", "study"]


@dataclass(frozen=True)
class Variant:
    """One row of the study."""

    name: str
    token_mixer: str | list[str]
    """of all stages, or one for each"""
    mixer_args: dict[str, Any] | list[dict[str, Any]]
    dims: list[int] | None
    """channels of the stages, where they differ from the recipe's"""
    seeds: int

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments of the model, over the recipe's."""
        arguments = {"token_mixer": self.token_mixer, "mixer_args": self.mixer_args, "dims": self.dims}
        return {name: value for name, value in arguments.items() if value is not None}


@dataclass(frozen=True)
class Study:
    """What is compared."""

    recipe: ClassificationConfig
    variants: dict[str, Variant]
    reference: str

    @cached_property
    def num_classes(self) -> int:
        """Of the data. Raises ValueError where an image may have several labels."""
        source = next(iter(open_sources(self.recipe).values()))
        if source.multi_label:
            raise ValueError(
                f"{self.recipe.data} has several labels an image: a study compares top-1 of one each"
            )
        return len(source.classes)

    @property
    def jobs(self) -> list[Job]:
        """All runs."""
        return seed_by_seed({name: variant.seeds for name, variant in self.variants.items()})

    def config(self, variant: Variant, seed: int = 0) -> ClassificationConfig:
        """The configuration of a run."""
        return replace(self.recipe, model_args=self.recipe.model_args | variant.model_args, seed=seed)

    def dims(self, variant: Variant) -> list[int]:
        """Channels of the stages."""
        default = self.recipe.model_args.get("dims", VARIANTS[self.recipe.model]["dims"])
        return list(variant.dims or default)

    def build(self, variant: Variant) -> nn.Module:
        """The network of a variant, untrained."""
        arguments = self.recipe.model_args | variant.model_args
        return timm.create_model(
            self.recipe.model, in_chans=self.recipe.in_chans, num_classes=self.num_classes, **arguments
        )

    def cost(self, variant: Variant) -> tuple[int, int]:
        """Parameters, and multiply-adds of one image."""
        with torch.device("meta"):
            model: Any = self.build(variant)
        size = self.recipe.image_size
        return sum(p.numel() for p in model.parameters()), int(model.macs(size, size))


def study(
    config: str,
    out: str = "runs/study",
    stage: Literal["run", "report"] = "run",
    *,
    train: Callable[[ClassificationConfig, Path], None],
) -> Path:
    """Compare token mixers as a YAML file says.

    Args:
        config: the study's YAML file.
        out: folder for the runs, results.csv and results.md.
        stage: run makes every run that is left, and reports; report makes the table of the rows so far.
        train: makes a run, or continues it: `atconv.tasks.train_or_resume`.

    Returns:
        the folder.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not describe a study.
    """
    described, folder = read_study(config), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if stage == "run":
        prepare_sweep(described, folder, train).run(described.jobs)
    report_study(folder, described.variants, described.reference)
    return folder


def read_study(path: str | Path) -> Study:
    """Read a study's YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not describe a study, or one of its mixers cannot be built.
    """
    content = read_yaml(Path(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not describe a study: reference, seeds, recipe and variants")
    try:
        _check_names("the study", content, {"reference", "seeds", "recipe", "variants"})
        _check_names("the recipe", content["recipe"], {field.name for field in fields(ClassificationConfig)})
        recipe = ClassificationConfig(**content["recipe"])
        variants = {
            str(name): _read_variant(str(name), options, content["seeds"])
            for name, options in content["variants"].items()
        }
        reference = content["reference"]
    except KeyError as error:
        raise ValueError(f"{path} does not describe a study: {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe a study: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if reference not in variants:
        raise ValueError(f"{path}: the reference {reference!r} is not among the variants")
    if len({Job(name, 0).folder for name in variants}) < len(variants):
        raise ValueError(f"{path}: two variants share a folder, their names differ in spaces or slashes")
    if recipe.model not in VARIANTS or not isinstance(recipe.model_args, dict):
        raise ValueError(
            f"{path}: the recipe takes a model among {', '.join(VARIANTS)} and model_args as a mapping, "
            f"got {recipe.model} and {recipe.model_args}"
        )
    return Study(recipe, variants, reference)


def _read_variant(name: str, options: dict[str, Any], seeds: int) -> Variant:
    _check_names(f"the variant {name!r}", options, {"token_mixer", "mixer_args", "dims", "seeds"})
    seeds = options.get("seeds", seeds)
    if type(seeds) is not int or seeds < 1:
        raise ValueError(f"the variant {name!r} must have 1 seed or more, a whole number, got {seeds}")
    variant = Variant(name, options["token_mixer"], options.get("mixer_args", {}), options.get("dims"), seeds)
    with torch.device("meta"):  # fail fast
        timm.create_model("attnet_xxs", **variant.model_args)
    return variant


def _check_names(what: str, options: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{what} has no {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def prepare_sweep(
    study: Study, out: Path, train: Callable[[ClassificationConfig, Path], None], runs: Path | None = None
) -> Sweep:
    """The runs of a study, whose table is OUT/results.csv.

    Args:
        study: what is compared.
        out: folder of the table.
        train: makes a run, or continues it.
        runs: folder of the runs; default: OUT/runs.

    Raises:
        ValueError: the folder holds runs of another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    runs = runs or out / "runs"
    _check_runs(study, runs)
    device = resolve_device(study.recipe.device)
    precision = available_precision(study.recipe.precision, device.type)
    return Sweep(out / "results.csv", runs, partial(_make_row, study, train), device, precision)


def _make_row(
    study: Study, train: Callable[[ClassificationConfig, Path], None], job: Job, run: Path
) -> dict[str, Any]:
    variant = study.variants[job.variant]
    train(study.config(variant, job.seed), run)
    parameters, macs = study.cost(variant)
    return {
        "top1": read_json(run / "metrics.json", {"top1": float})["top1"],
        "parameters": parameters,
        "macs": macs,
        "seconds": round(sum(row["seconds"] for row in read_rows(run / "metrics.csv", {"seconds": float}))),
        "dims": " ".join(map(str, study.dims(variant))),
    }


def _check_runs(study: Study, runs: Path) -> None:
    """Rows of one table come from one recipe, which each run keeps.

    Raises:
        ValueError: a run was begun with another one.
    """
    for job in study.jobs:
        run = Run(runs / job.folder)
        if run.config.is_file():
            config = inherit_config(study.config(study.variants[job.variant], job.seed))
            continued_config(run, config, "classification")
