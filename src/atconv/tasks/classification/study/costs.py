"""What a study costs and what it can show: seconds by variant, and a pilot of its first runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from scipy import optimize, stats
from torch import Tensor, nn

from atconv.deploy.timing import median_seconds
from atconv.engine.devices import available_precision
from atconv.engine.progress import make_table, plain_console
from atconv.engine.run import resolve_device
from atconv.engine.trainer import make_optimizer
from atconv.io import read_rows, write_rows
from atconv.tasks.classification.study.plan import Study, Variant
from atconv.tasks.classification.study.results import Result, read_results
from atconv.tasks.classification.study.running import run_study
from atconv.tasks.classification.study.summary import paired_differences

__all__ = ["pilot_study", "smallest_difference", "time_study"]

_PILOT_SEEDS = 3
_ROUNDS = 15


def time_study(study: Study, out: Path, console: Console | None = None) -> Path:
    """Seconds of a training step and of a forward pass of every variant, interleaved in one process, with the
    batch, precision, optimizer and device of the recipe. Returns timing.csv: medians."""
    console = console or plain_console()
    recipe, device = study.recipe, resolve_device(study.recipe.device)
    batch = recipe.global_batch_size or recipe.base_batch_size
    images = torch.randn(batch, recipe.in_chans, recipe.image_size, recipe.image_size, device=device)
    models = {variant.name: study.build(variant).to(device) for variant in study.variants}
    optimizers = {name: make_optimizer(model, recipe, recipe.lr) for name, model in models.items()}
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    for name, model in models.items():
        calls[name, "step"] = partial(_train_step, model, optimizers[name], images, recipe.precision)
        calls[name, "pass"] = partial(_forward, model, images, recipe.precision)
    seconds = median_seconds(calls, _ROUNDS)
    rows = [
        {
            "variant": name,
            "training_step": f"{seconds[name, 'step']:.4f}",
            "inference_batch": f"{seconds[name, 'pass']:.4f}",
            "batch": str(batch),
            "threads": str(torch.get_num_threads()),
            "precision": available_precision(recipe.precision, device.type),
        }
        for name in models
    ]
    write_rows(out / "timing.csv", rows)
    console.print(make_table("seconds a batch", list(rows[0]), [list(row.values()) for row in rows]))
    return out / "timing.csv"


def _train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, precision: str) -> None:
    model.train()
    with _autocast(images.device, precision):
        loss = model(images).float().logsumexp(1).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    _wait(images.device)


@torch.inference_mode()
def _forward(model: nn.Module, images: Tensor, precision: str) -> None:
    model.eval()
    with _autocast(images.device, precision):
        model(images)
    _wait(images.device)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    taken = available_precision(precision, device.type)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(taken)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def pilot_study(study: Study, out: Path, console: Console | None = None) -> Path:
    """Run the first three seeds of the reference and of one or two variants beside it, and say what all runs
    will take and what differences they can show.

    Networks of the reference's widths start alike and scatter less against it than others do, so one of
    either kind is run. The runs count: `run_study` goes on from them. Seconds of the other variants follow
    from timing.csv.

    Returns:
        pilot.csv: for each variant its seeds, seconds a run, hours; and the smallest difference to the
        reference, in points, that they show if its pairs scatter as those of the pilot (`deviation`, from so
        many `pairs`) do.

    Raises:
        ValueError: seconds were not measured for every variant, or there are too few runs for a pilot.
    """
    console = console or plain_console()
    seconds = {row["variant"]: float(row["training_step"]) for row in read_rows(out / "timing.csv")}
    missing = [variant.name for variant in study.variants if variant.name not in seconds]
    if missing:
        raise ValueError(f"seconds of {', '.join(missing)} are not measured yet: run --stage time first")
    reference, pilots = _choose_pilots(study)
    seeds = range(min(_PILOT_SEEDS, reference.seeds))
    ran = [(v, seed) for seed in seeds for v in (reference, *pilots.values()) if seed < v.seeds]
    table = run_study(study, out, console, ran)
    results = [result for result in read_results(table) if result.seed in seeds]
    a_run = statistics.median(result.seconds for result in results if result.variant == reference.name)
    spreads = {alike: _spread(results, pilot, reference) for alike, pilot in pilots.items()}
    told = []
    for variant in study.variants:
        alike = study.widths[variant.name] == study.widths[reference.name]
        spread = spreads.get(alike, next(iter(spreads.values())))
        took = a_run * seconds[variant.name] / seconds[reference.name]
        told.append(_forecast(variant, reference, took, *spread))
    write_rows(out / "pilot.csv", told)
    hours = sum(float(row["hours"]) for row in told)
    runs = sum(variant.seeds for variant in study.variants)
    title = f"{runs} runs, {hours:.1f} hours; smallest difference: found with 80 % power at the 5 % level"
    console.print(make_table(title, list(told[0]), [list(row.values()) for row in told]))
    return out / "pilot.csv"


def _forecast(
    variant: Variant, reference: Variant, seconds: float, deviation: float, count: int
) -> dict[str, str]:
    """A row of pilot.csv: what a variant's runs take, at so many seconds each, and what they can show."""
    pairs = min(variant.seeds, reference.seeds)
    judged = variant is not reference and pairs > 1
    return {
        "variant": variant.name,
        "seeds": str(variant.seeds),
        "seconds_a_run": f"{seconds:.0f}",
        "hours": f"{seconds * variant.seeds / 3600:.2f}",
        "deviation": f"{deviation:.2f}" if judged else "",
        "pairs": str(count) if judged else "",
        "smallest_difference": f"{smallest_difference(deviation, pairs):.2f}" if judged else "",
    }


def _choose_pilots(study: Study) -> tuple[Variant, dict[bool, Variant]]:
    """The reference; and the first variant of other widths than it has (False) and of the same (True)."""
    reference = next(v for v in study.variants if v.name == study.reference)
    others = [v for v in study.variants if v is not reference and min(v.seeds, reference.seeds) > 1]
    if not others:
        raise ValueError("a pilot takes two variants with two seeds or more")
    pilots: dict[bool, Variant] = {}
    for variant in others:
        pilots.setdefault(study.widths[variant.name] == study.widths[reference.name], variant)
    return reference, pilots


def _spread(results: Sequence[Result], pilot: Variant, reference: Variant) -> tuple[float, int]:
    """Standard deviation of the paired differences, and how many there are."""
    differences = paired_differences(results, pilot.name, reference.name)
    if len(differences) < min(_PILOT_SEEDS, pilot.seeds, reference.seeds):
        raise ValueError("another process has some of the pilot's runs: ask again when it has ended them")
    deviation = statistics.stdev(differences)
    if deviation == 0:
        raise ValueError(f"{pilot.name} differs by as much in every pair: too little to plan with")
    return deviation, len(differences)


def smallest_difference(deviation: float, pairs: int) -> float:
    """The mean paired difference that a two-sided t test at the 5 % level finds four times in five.

    Args:
        deviation: standard deviation of single paired differences.
        pairs: how many there will be, 2 or more.
    """
    freedom = pairs - 1
    critical = stats.t.ppf(0.975, freedom)
    chi = stats.chi(freedom)

    def missing_power(shift: float) -> float:
        # t > critical, for each size that the estimated deviation may come out at
        found = chi.expect(lambda size: stats.norm.cdf(shift - critical * size / freedom**0.5))
        return float(found) - 0.8

    return float(optimize.brentq(missing_power, 0.0, 40.0)) * deviation / pairs**0.5
