"""The same network, recipe, data order and budget, one token mixer after another: which is right more often?

A study is a YAML file:

    reference: ATConv
    seeds: 8
    recipe: {data: torch/fashion_mnist, model: attnet_xxs, …}     # fields of `atconv train`
    variants:
      ATConv: {token_mixer: atconv}
      depthwise 7×7: {token_mixer: depthwise7}
      pooling: {token_mixer: pooling, seeds: 3}

Widths are adjusted until each variant has the reference's parameters to 2 %. Each run adds a row to
results.csv; a run that has a row is not run again, an interrupted one goes on.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import yaml
from rich.console import Console
from scipy import stats
from torch import nn

from atconv.classification.config import ClassificationConfig
from atconv.classification.figures import accuracy_against_cost
from atconv.classification.train import resume, train
from atconv.models.attnet import VARIANTS
from atconv.training.checkpoint import read_rows, write_rows
from atconv.training.progress import make_table, plain_console

__all__ = ["Study", "Summary", "read_study", "report_study", "run_study", "study", "summarise", "time_study"]

_TOLERANCE = 0.02
_STEP = 4  # widths are multiples of it
_ROUNDS, _WARM_UP = 7, 2


@dataclass(frozen=True)
class Variant:
    """One row of the study."""

    name: str
    token_mixer: str
    mixer_args: dict[str, Any]
    seeds: int


@dataclass(frozen=True)
class Study:
    """What is compared."""

    recipe: ClassificationConfig
    variants: list[Variant]
    reference: str

    @property
    def jobs(self) -> list[tuple[Variant, int]]:
        """Every run, seed by seed, so that an early end leaves complete comparisons."""
        most = max(variant.seeds for variant in self.variants)
        return [(v, seed) for seed in range(most) for v in self.variants if seed < v.seeds]

    def config(self, variant: Variant, seed: int = 0) -> ClassificationConfig:
        """The configuration of a run."""
        widths = self.widths[variant.name]
        arguments = self.recipe.model_args | _mixer_of(variant) | {"widths": widths}
        return replace(self.recipe, model_args=arguments, seed=seed)

    @cached_property
    def widths(self) -> dict[str, list[int]]:
        """Widths of the four stages by variant: the recipe's for the reference, matched for the others.

        Raises:
            ValueError: no widths bring a variant within 2 % of the reference's parameters.
        """
        base = list(self.recipe.model_args.get("widths", VARIANTS[self.recipe.model]["widths"]))
        reference = next(v for v in self.variants if v.name == self.reference)
        target = self.parameters(reference, base)
        found = {v.name: self._match(v, base, target) for v in self.variants if v is not reference}
        return {reference.name: base, **found}

    def build(self, variant: Variant, widths: Sequence[int] | None = None) -> nn.Module:
        """The network of a variant, untrained, for 10 classes where the data is not asked."""
        arguments = self.recipe.model_args | _mixer_of(variant)
        arguments["widths"] = self.widths[variant.name] if widths is None else list(widths)
        return timm.create_model(
            self.recipe.model, in_chans=self.recipe.in_chans, num_classes=10, **arguments
        )

    def parameters(self, variant: Variant, widths: Sequence[int]) -> int:
        """Of the network of a variant."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.build(variant, widths).parameters())

    def _match(self, variant: Variant, base: Sequence[int], target: int) -> list[int]:
        """Scale all widths until the parameters pass the target, then choose among the neighbours."""
        low, high = 0.25, 4.0
        for _ in range(12):
            middle = (low + high) / 2
            below = self.parameters(variant, _scaled(base, middle)) < target
            low, high = (middle, high) if below else (low, middle)
        near = _scaled(base, low)
        candidates = [
            [near[0], near[1], near[2] + _STEP * i, near[3] + _STEP * j]
            for i in range(-2, 3)
            for j in range(-3, 4)
            if near[2] + _STEP * i > 0 and near[3] + _STEP * j > 0
        ]
        off, best = min((abs(self.parameters(variant, c) / target - 1), c) for c in candidates)
        if off > _TOLERANCE:
            raise ValueError(f"{variant.name}: no widths near {best} have {target} parameters to 2 %")
        return best


def study(
    config: str,
    out: str = "runs/study",
    stage: Literal["run", "time", "report"] = "run",
    console: Console | None = None,
) -> Path:
    """Compare token mixers as a YAML file says.

    Args:
        config: the study's YAML file.
        out: folder for the runs, results.csv, timing.csv and results.png.
        stage: run does every run that is left, and reports; time measures seconds, on an idle machine;
            report draws what is there.
        console: where progress shows.

    Returns:
        the folder.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not describe a study.
    """
    console = console or plain_console()
    described, folder = read_study(config), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if stage == "time":
        time_study(described, folder, console)
    if stage == "run":
        run_study(described, folder, console)
    if stage != "time":
        report_study(described, folder, console)
    return folder


def read_study(path: str | Path) -> Study:
    """Read a study's YAML file.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not describe a study.
    """
    try:
        given = yaml.safe_load(Path(path).read_text())
        known = {field.name for field in fields(ClassificationConfig)}
        unknown = sorted(set(given["recipe"]) - known)
        if unknown:
            raise ValueError(f"the recipe has no {', '.join(unknown)}")
        variants = [
            Variant(
                name,
                options["token_mixer"],
                options.get("mixer_args", {}),
                options.get("seeds", given["seeds"]),
            )
            for name, options in given["variants"].items()
        ]
        study = Study(ClassificationConfig(**given["recipe"]), variants, given["reference"])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe a study: {error!r}") from error
    if study.reference not in [variant.name for variant in variants]:
        raise ValueError(f"{path}: the reference {study.reference!r} is not among the variants")
    return study


def run_study(study: Study, out: Path, console: Console | None = None) -> Path:
    """Train and test every variant that has no row yet.

    Args:
        study: from `read_study`.
        out: folder with a run for each job, and results.csv.
        console: where progress shows.

    Returns:
        results.csv.
    """
    console, table = console or plain_console(), out / "results.csv"
    for variant, seed in study.jobs:
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
            "widths": " ".join(map(str, study.widths[variant.name])),
        }
        write_rows(table, [*rows, row])
    return table


def multiply_adds(study: Study, variant: Variant) -> int:
    """Of one image."""
    with torch.device("meta"):
        model: Any = study.build(variant)
    side = study.recipe.image_size
    return int(model.multiply_adds(side, side))


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
    by_seed = {(row["variant"], row["seed"]): float(row["top1"]) for row in rows}
    found = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        values = [float(row["top1"]) for row in mine]
        pairs = [
            by_seed[name, row["seed"]] - by_seed[reference, row["seed"]]
            for row in mine
            if name != reference and (reference, row["seed"]) in by_seed
        ]
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


def report_study(study: Study, out: Path, console: Console | None = None) -> Path:
    """Print a table of the rows so far and draw results.png. Returns the picture.

    Raises:
        ValueError: there are no rows.
    """
    rows = read_rows(out / "results.csv")
    if not rows:
        raise ValueError(f"{out / 'results.csv'} has no rows yet: no run has ended")
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


def _mixer_of(variant: Variant) -> dict[str, Any]:
    return {"token_mixer": variant.token_mixer, "mixer_args": variant.mixer_args}


def _scaled(widths: Sequence[int], factor: float) -> list[int]:
    return [max(_STEP, round(width * factor / _STEP) * _STEP) for width in widths]
