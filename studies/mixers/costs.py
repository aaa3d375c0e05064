"""What the study costs and what it can show: seconds of each variant, and a pilot of its first runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from atconv.deploy.timing import median_seconds
from atconv.engine.devices import available_precision, resolve_device
from atconv.engine.optimizer import make_optimizer
from atconv.io import read_rows, write_rows
from atconv.tasks.classification.study import Study, Variant
from atconv.tasks.classification.study_report import Result, read_results
from atconv.tasks.common.sweep import Job, Sweep, paired_differences
from studies.harness import smallest_difference, synchronize

__all__ = ["pilot_study", "time_study"]

_PILOT_SEEDS = 3
_ROUNDS = 15


def time_study(study: Study, out: Path) -> Path:
    """Seconds of a training step and of a forward pass of every variant, interleaved in one process.

    Batch, precision, optimizer and device are the recipe's.

    Returns:
        timing.csv: medians.
    """
    recipe, device = study.recipe, resolve_device(study.recipe.device)
    batch = recipe.global_batch_size or recipe.base_batch_size
    images = torch.randn(batch, recipe.in_chans, recipe.image_size, recipe.image_size, device=device)
    precision = available_precision(recipe.precision, device.type)
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    for name, variant in study.variants.items():
        model = study.build(variant).to(device)
        calls[name, "step"] = partial(
            _train_step, model, make_optimizer(model, recipe, recipe.lr), images, precision
        )
        calls[name, "pass"] = partial(_forward, model, images, precision)
    seconds = median_seconds(calls, _ROUNDS)
    rows = [
        {
            "variant": name,
            "training_step": f"{seconds[name, 'step']:.4f}",
            "inference_batch": f"{seconds[name, 'pass']:.4f}",
            "batch": str(batch),
            "threads": str(torch.get_num_threads()),
            "precision": precision,
        }
        for name in study.variants
    ]
    write_rows(out / "timing.csv", rows)
    return out / "timing.csv"


def _train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, precision: str) -> None:
    model.train()
    with _autocast(images.device, precision):
        loss = model(images).float().logsumexp(1).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    synchronize(images.device)


@torch.inference_mode()
def _forward(model: nn.Module, images: Tensor, precision: str) -> None:
    model.eval()
    with _autocast(images.device, precision):
        model(images)
    synchronize(images.device)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def pilot_study(study: Study, sweep: Sweep, run: Callable[[Sequence[Job]], None]) -> Path:
    """Make the first three seeds of the reference and of one or two other variants; forecast all runs.

    Networks of the reference's dims start alike and scatter less against it than others do, so one of either
    kind is run. The runs count: the study continues from them. Seconds of the other variants follow from
    timing.csv, which must lie next to the table.

    Args:
        study: with matched dims.
        sweep: its runs and table.
        run: makes the rows of some jobs.

    Returns:
        pilot.csv: for each variant its seeds, seconds a run, hours; and the smallest difference to the
        reference, in points, that they show if its pairs scatter as those of the pilot (`deviation`, from so
        many `pairs`) do.

    Raises:
        ValueError: seconds were not measured for every variant, or there are too few runs for a pilot.
    """
    out = sweep.table.parent
    seconds = {row["variant"]: float(row["training_step"]) for row in read_rows(out / "timing.csv")}
    missing = [name for name in study.variants if name not in seconds]
    if missing:
        raise ValueError(f"seconds of {', '.join(missing)} are not measured yet: run the stage time first")
    reference, pilots = _choose_pilots(study)
    jobs = [
        Job(variant.name, seed)
        for seed in range(min(_PILOT_SEEDS, reference.seeds))
        for variant in (reference, *pilots.values())
        if seed < variant.seeds
    ]
    run(jobs)
    results = [result for result in read_results(sweep.table) if result.seed < _PILOT_SEEDS]
    a_run = statistics.median(result.seconds for result in results if result.variant == reference.name)
    spreads = {alike: _spread(results, pilot, reference) for alike, pilot in pilots.items()}
    rows = []
    for variant in study.variants.values():
        alike = study.dims(variant) == study.dims(reference)
        spread = spreads.get(alike, next(iter(spreads.values())))
        rows.append(
            _forecast(variant, reference, a_run * seconds[variant.name] / seconds[reference.name], *spread)
        )
    write_rows(out / "pilot.csv", rows)
    return out / "pilot.csv"


def _forecast(
    variant: Variant, reference: Variant, seconds: float, deviation: float, count: int
) -> dict[str, str]:
    """A row of pilot.csv: what a variant's runs take, at so many seconds each, and what they can show."""
    pairs = min(variant.seeds, reference.seeds)
    compared = variant is not reference and pairs > 1
    return {
        "variant": variant.name,
        "seeds": str(variant.seeds),
        "seconds_a_run": f"{seconds:.0f}",
        "hours": f"{seconds * variant.seeds / 3600:.2f}",
        "deviation": f"{deviation:.2f}" if compared else "",
        "pairs": str(count) if compared else "",
        "smallest_difference": f"{smallest_difference(deviation, pairs):.2f}" if compared else "",
    }


def _choose_pilots(study: Study) -> tuple[Variant, dict[bool, Variant]]:
    """The reference; and the first variant of other dims than it has (False) and of the same (True)."""
    reference = study.variants[study.reference]
    pilots: dict[bool, Variant] = {}
    for variant in study.variants.values():
        if variant is not reference and min(variant.seeds, reference.seeds) > 1:
            pilots.setdefault(study.dims(variant) == study.dims(reference), variant)
    if not pilots:
        raise ValueError("a pilot takes two variants with two seeds or more")
    return reference, pilots


def _spread(results: Sequence[Result], pilot: Variant, reference: Variant) -> tuple[float, int]:
    """Standard deviation of the paired differences, and how many there are."""
    top1 = {(result.variant, result.seed): result.top1 for result in results}
    differences = paired_differences(top1, pilot.name, reference.name)
    if len(differences) < min(_PILOT_SEEDS, pilot.seeds, reference.seeds):
        raise ValueError("another process has some of the pilot's runs: ask again when it has ended them")
    deviation = statistics.stdev(differences)
    if deviation == 0:
        raise ValueError(f"{pilot.name} differs by as much in every pair: too little to plan with")
    return deviation, len(differences)
