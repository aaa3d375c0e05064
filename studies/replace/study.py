"""A small ViT trained on Fashion-MNIST; ATConv in its attention's place; what a tenth of the time gives.

    python -m studies.replace.study run DATA_ROOT     # every row that is missing, in any number of steps
    python -m studies.replace.study time DATA_ROOT    # milliseconds of a step and of inference; idle machine
    python -m studies.replace.study report            # tables and results.png

DATA_ROOT is what `python -m studies.datasets.fashion_mnist DATA_ROOT` wrote. Seconds of training are steps ×
the time of one, measured apart, so runs may share their machine. `val_top1` is the accuracy on 5,000 training
images that are held out: whoever changes a constant chooses by it; the test images evaluate.
"""

from __future__ import annotations

import copy
import statistics
import zlib
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import nn

import atconv
from atconv.deploy.timing import median_seconds
from atconv.io import read_rows, save_tensors, write_rows
from atconv.plots import plt, save
from atconv.tasks.common.sweep import Job, Sweep, seed_by_seed
from studies import harness
from studies.replace.distill import distill_blocks
from studies.replace.training import (
    BATCH,
    LR,
    TRAINING,
    VIT,
    Data,
    accuracy,
    batches,
    fit,
    load_data,
    make_vit,
)

HERE = Path(__file__).parent
SEEDS = 3
EPOCHS = 10
SHORT = 1.25  # epochs in all that a model with ATConv is given: about a tenth of the original's seconds
SHORT_HALF = 1.2  # the same where half of the blocks keep attention
LONGER = 2  # times as many: what more time gives
DISTILLING, DISTILLING_LR = 0.05, 1e-2  # share of those that fits mixers to attention
MIXERS_LR = 4e-3  # in tuning; the rest, which has learned already, keeps to LR
FIRST_HALF, DISTILLING_HALF = (0, 1), 0.15  # blocks, and the share of fitting them
GENTLE_LR, GENTLE_MIXERS_LR = 3e-4, 1e-3  # for it: where less is new, higher rates undo what the fit gave
TWICE = 2 * EPOCHS  # epochs of an original that has learned more of what there is
TIMED = 8  # steps in one measurement
POOLING_EPOCHS = 2  # class token against mean, both with ATConv from scratch

# Kinds of steps, as timing.csv names them.
ATTENDING, TUNING, FITTING = "attention, a step", "ATConv, a step", "fitting mixers, a step"
TUNING_HALF, FITTING_HALF = "ATConv in half of the blocks, a step", "fitting half of the mixers, a step"


@dataclass(frozen=True)
class Form:
    """What a row is of."""

    make: Callable[[Data, int, Path], nn.Module]
    """(data, seed, folder of the run) → the trained model"""
    steps: dict[str, int]
    """by kind, what it costs; empty where that does not matter"""


def steps_in(epochs: float) -> int:
    return int(epochs * TRAINING) // BATCH


def with_attention(epochs: int) -> Form:
    """The ViT as it is."""

    def make(data: Data, seed: int, run: Path) -> nn.Module:
        return original(data, seed, run.parent, epochs)

    return Form(make, {ATTENDING: steps_in(epochs)})


def original(data: Data, seed: int, folder: Path, epochs: int) -> nn.Module:
    """The ViT with attention, trained once: other forms start from it."""
    model = make_vit(seed, data.device)
    digest = zlib.crc32(repr((VIT, BATCH, epochs, LR, TRAINING)).encode())
    path = folder / f"vit-{digest:x}-{seed}.safetensors"
    with FileLock(path.with_suffix(".lock")):  # several rows may want it at once
        if path.is_file():
            model.load_state_dict(load_file(path))
            return model
        checkpoint = path.with_suffix(".pt")
        fit(model, data, seed, steps_in(epochs), checkpoint=checkpoint)
        save_tensors(model.state_dict(), path)
        checkpoint.unlink(missing_ok=True)
    return model


def replaced(model: nn.Module, blocks: Collection[int] | None = None) -> nn.Module:
    atconv.replace_attention(model, blocks=blocks)
    return model


def distilled(
    epochs: float,
    source_epochs: int = EPOCHS,
    share: float = DISTILLING,
    blocks: Collection[int] | None = None,
    lr: float = LR,
    mixers_lr: float = MIXERS_LR,
) -> Form:
    """ATConv for attention, in all blocks or some: fit the mixers, then tune the full model."""
    fitting, tuning = round(share * steps_in(epochs)), round((1 - share) * steps_in(epochs))

    def make(data: Data, seed: int, run: Path) -> nn.Module:
        teacher = original(data, seed, run.parent, source_epochs)
        model = replaced(copy.deepcopy(teacher), blocks)
        checkpoint = run / "tuning.pt"
        if not checkpoint.is_file():
            print(fit_mixers(model, teacher, data, seed + 100, fitting))
        fit(model, data, seed + 200, tuning, lr, mixers_lr, checkpoint)
        return model

    kinds = (FITTING, TUNING) if blocks is None else (FITTING_HALF, TUNING_HALF)
    return Form(make, dict(zip(kinds, (fitting, tuning), strict=True)))


def fit_mixers(model: nn.Module, teacher: nn.Module, data: Data, seed: int, steps: int) -> object:
    """Fit each mixer to the attention that it replaced."""
    return distill_blocks(model, teacher, batches(data, seed, steps), steps, DISTILLING_LR, progress=False)


def tuned(data: Data, seed: int, run: Path) -> nn.Module:
    """The same without fitting the mixers first."""
    model = replaced(copy.deepcopy(original(data, seed, run.parent, EPOCHS)))
    fit(model, data, seed + 200, steps_in(SHORT), mixers_lr=MIXERS_LR, checkpoint=run / "tuning.pt")
    return model


def from_scratch(data: Data, seed: int, run: Path) -> nn.Module:
    """The same, newly initialized."""
    model = replaced(make_vit(seed, data.device))
    fit(model, data, seed + 200, steps_in(SHORT), checkpoint=run / "training.pt")
    return model


def short(data: Data, seed: int, run: Path) -> nn.Module:
    """Attention, newly initialized, for a tenth of the original's steps: what the time alone gives."""
    model = make_vit(seed, data.device)
    fit(model, data, seed + 200, steps_in(EPOCHS / 10), checkpoint=run / "training.pt")
    return model


def pooled(pool: str) -> Form:
    """ATConv from scratch, with a class token or the mean."""

    def make(data: Data, seed: int, run: Path) -> nn.Module:
        model = replaced(make_vit(seed, data.device, class_token=pool == "token", global_pool=pool))
        fit(model, data, seed, steps_in(POOLING_EPOCHS), checkpoint=run / "training.pt")
        return model

    return Form(make, {})


ORIGINAL, DISTILLED = "attention", "ATConv, distilled and tuned"
LONG = f"{DISTILLED}, {LONGER} times as long"
HALF = "ATConv in half of the blocks, distilled and tuned"
LATER = "attention, twice as long"
LATER_DISTILLED = "ATConv, distilled and tuned, from attention trained twice as long"
TOKEN, MEAN = "ATConv from scratch, class token", "ATConv from scratch, mean"
FORMS = {
    ORIGINAL: with_attention(EPOCHS),
    DISTILLED: distilled(SHORT),
    LONG: distilled(LONGER * SHORT),
    HALF: distilled(
        SHORT_HALF, share=DISTILLING_HALF, blocks=FIRST_HALF, lr=GENTLE_LR, mixers_lr=GENTLE_MIXERS_LR
    ),
    "ATConv, tuned": Form(tuned, {TUNING: steps_in(SHORT)}),
    "ATConv, from scratch": Form(from_scratch, {TUNING: steps_in(SHORT)}),
    "attention, from scratch, a tenth of the steps": Form(short, {ATTENDING: steps_in(EPOCHS / 10)}),
    TOKEN: pooled("token"),
    MEAN: pooled("avg"),
    LATER: with_attention(TWICE),
    LATER_DISTILLED: distilled(SHORT * TWICE / EPOCHS, source_epochs=TWICE),
}


def plan(args: Namespace) -> tuple[Sweep, Sequence[Job]]:
    make = partial(make_row, args.data, args.device)
    sweep = Sweep(args.out / "results.csv", args.runs, make, args.device, "fp32", column="form")
    return sweep, seed_by_seed(dict.fromkeys(FORMS, SEEDS))


def make_row(root: str, device: torch.device, job: Job, run: Path) -> dict[str, Any]:
    run.mkdir(parents=True, exist_ok=True)
    data = load_data(root, device)
    model = FORMS[job.variant].make(data, job.seed, run)
    return {"val_top1": round(accuracy(model, *data.val), 2), "top1": round(accuracy(model, *data.test), 2)}


def time(args: Namespace) -> None:
    """Milliseconds of training steps and of 64 images, interleaved, to timing.csv."""
    data, model = load_data(args.data, args.device), make_vit(0, args.device)
    mixed, half = (replaced(copy.deepcopy(model), blocks) for blocks in (None, FIRST_HALF))
    images = torch.randn(64, 1, 28, 28, device=args.device)
    teacher = copy.deepcopy(model)

    @torch.inference_mode()
    def infer(network: nn.Module) -> None:
        network.eval()(images)

    def to_the_end(call: Callable[..., object], *arguments: Any) -> Callable[[], None]:
        def run() -> None:
            call(*arguments)
            harness.synchronize(args.device)

        return run

    steps = median_seconds(
        {
            ATTENDING: to_the_end(fit, model, data, 0, TIMED),
            TUNING: to_the_end(fit, mixed, data, 0, TIMED),
            FITTING: to_the_end(fit_mixers, copy.deepcopy(mixed), teacher, data, 0, TIMED),
            TUNING_HALF: to_the_end(fit, half, data, 0, TIMED),
            FITTING_HALF: to_the_end(fit_mixers, copy.deepcopy(half), teacher, data, 0, TIMED),
        }
    )
    seconds = {name: value / TIMED for name, value in steps.items()}
    models = {"attention": model, "ATConv": mixed, "ATConv in half of the blocks": half}
    seconds |= median_seconds({f"{name}, 64 images": to_the_end(infer, net) for name, net in models.items()})
    threads = torch.get_num_threads()
    rows = [
        {"what": name, "milliseconds": round(1000 * value, 2), "threads": threads}
        for name, value in seconds.items()
    ]
    write_rows(args.out / "timing.csv", rows)


def report(args: Namespace) -> None:
    """The tables in README.md, whether the targets were met, and results.png."""
    rows, times = read_rows(args.out / "results.csv"), read_rows(args.out / "timing.csv")
    milliseconds = {row["what"]: float(row["milliseconds"]) for row in times}
    seconds = {
        name: sum(count * milliseconds[kind] for kind, count in form.steps.items()) / 1000
        for name, form in FORMS.items()
        if form.steps and milliseconds
    }
    print("| form | seeds | top-1, % | seconds |\n| --- | ---: | ---: | ---: |")
    for name in FORMS:
        points = [float(row["top1"]) for row in rows if row["form"] == name]
        if points:
            cost = f"{seconds[name]:.0f}" if name in seconds else ""
            print(f"| {name} | {len(points)} | {harness.mean_and_deviation(points, '.2f', '.2f')} | {cost} |")
    plot(rows, seconds, args.out / "results.png")
    print()
    for name, other in ((DISTILLED, ORIGINAL), (LONG, ORIGINAL), (HALF, ORIGINAL), (LATER_DISTILLED, LATER)):
        share = f"; in {seconds[name] / seconds[other]:.1%} of its seconds" if seconds else ""
        print(f"{name}: {_differences(rows, name, other)}{share}")
    print(f"Class token: {_differences(rows, TOKEN, MEAN)}")
    for row in times:
        print(f"{row['what']}: {row['milliseconds']} ms")


def _differences(rows: list[dict[str, str]], form: str, other: str) -> str:
    """Points of one form less those of another, seed by seed."""
    top1 = {(row["form"], row["seed"]): float(row["top1"]) for row in rows}
    seeds = [seed for name, seed in top1 if name == form and (other, seed) in top1]
    points = ", ".join(f"{top1[form, seed] - top1[other, seed]:+.2f}" for seed in seeds) or "none yet"
    return f"points minus those of {other}, seed by seed: {points}"


def plot(rows: list[dict[str, str]], seconds: dict[str, float], path: Path) -> None:
    """A line a form, a point a run."""
    top1 = {name: [float(row["top1"]) for row in rows if row["form"] == name] for name in seconds}
    shown = {name: points for name, points in top1.items() if points}
    figure, axis = plt.subplots(figsize=(9.6, 4.0), layout="constrained")
    for place, (name, points) in enumerate(shown.items()):
        axis.scatter(points, [place] * len(points), s=45, alpha=0.8, color="C1" if "ATConv" in name else "C0")
    if ORIGINAL in shown:
        axis.axvline(statistics.mean(shown[ORIGINAL]), color="C0", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(shown)), [f"{name} · {seconds[name]:,.0f} s" for name in shown])
    axis.invert_yaxis()
    axis.set(xlabel="top-1 on test images, %")
    figure.suptitle("A small ViT on Fashion-MNIST, and ATConv in its attention's place", fontsize=11)
    axis.grid(alpha=0.3, axis="x")
    save(figure, path)


if __name__ == "__main__":
    harness.main(__doc__, HERE, plan, report, {"time": time}, ("run", "time"))
