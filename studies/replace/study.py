"""A small ViT trained on Fashion-MNIST; ATConv put in its attention's place; what a tenth of the time gives.

    python -m studies.replace.study run DATA_ROOT     # one row a job; stop it and start it as you like;
                                                       # --seeds 0 and --seeds 1 2 may run side by side,
                                                       # --only JOB ... makes rows of these jobs;
                                                       # on a GPU where there is one
    python -m studies.replace.study time DATA_ROOT    # milliseconds of a step and of inference; idle machine
    python -m studies.replace.study report            # tables and results.png

Seconds of training are steps × the time of one, measured by turns: rows may be made beside other work, or on
another machine. `val_top1` is the accuracy on 5,000 training images that are held out: whoever changes a
constant chooses by it, and the test images judge.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

import atconv
from atconv.deploy.timing import median_seconds
from atconv.io import read_rows, write_atomically, write_rows
from atconv.plots import plt, save
from studies.replace.distill import DistillationReport, distill_blocks

HERE = Path(__file__).parent
RESULTS, TIMING = HERE / "results.csv", HERE / "timing.csv"
RUNS = Path("runs/study-replace")
SEEDS = (0, 1, 2)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VIT: dict[str, Any] = {
    "img_size": 28,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 2,
    "num_classes": 10,
    "class_token": False,
    "global_pool": "avg",
}
BATCH, EPOCHS, LR = 32, 10, 1e-3
SHORT = 1.25  # epochs in all that a model with ATConv is given: about a tenth of the original's seconds
SHORT_HALF = 1.2  # the same where half of the blocks keep attention
LONGER = 2  # times as many: what more time gives
DISTILLING, DISTILLING_LR = 0.05, 1e-2  # share of those that fits mixers to attention
MIXERS_LR = 4e-3  # in tuning; the rest, which has learned already, keeps to LR
FIRST_HALF, DISTILLING_HALF = (0, 1), 0.15  # blocks, and the share of fitting them
GENTLE_LR, GENTLE_MIXERS_LR = 3e-4, 1e-3  # for it: where less is new, higher rates undo what the fit gave
TWICE = 2 * EPOCHS  # epochs of an original that has learned more of what there is
KEEP_EVERY = 500  # steps of an original
TIMED = 8  # steps in one measurement
HELD_OUT = 5000  # training images that nothing is trained on
TRAINING = 60_000 - HELD_OUT
POOLING_EPOCHS = 2  # class token against mean, both with ATConv from scratch


@dataclass
class Data:
    """Fashion-MNIST on the device: uint8, N 1 28 28, and labels."""

    images: Tensor
    labels: Tensor
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def read(cls, root: str) -> Data:
        train, test = (FashionMNIST(root, train=train) for train in (True, False))
        (images, labels), judged = (
            (side.data[:, None].to(DEVICE), side.targets.to(DEVICE)) for side in (train, test)
        )
        val = images[-HELD_OUT:], labels[-HELD_OUT:]
        return cls(images[:-HELD_OUT], labels[:-HELD_OUT], val, judged)


def batches(data: Data, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, and mirrored at random. Shifts too would cost this ViT eight points after one epoch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(data.labels), generator=generator)
        index, order = order[:BATCH].to(DEVICE), order[BATCH:]
        images = scaled(data.images[index])
        mirrored = (torch.rand(BATCH, generator=generator) < 0.5).to(DEVICE)
        yield torch.where(mirrored[:, None, None, None], images.flip(3), images), data.labels[index]


def scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def fit(
    model: nn.Module,
    data: Data,
    seed: int,
    steps: int,
    lr: float = LR,
    mixers_lr: float = LR,
    keep: Path | None = None,
) -> None:
    """Train end to end. What is kept in a file now and then lets a later call go on from there."""
    model.train()
    mixers = [parameter for name, parameter in model.named_parameters() if ".attn." in name]
    rest = [parameter for name, parameter in model.named_parameters() if ".attn." not in name]
    optimizer = torch.optim.AdamW([{"params": mixers}, {"params": rest}], lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [mixers_lr, lr], total_steps=steps, pct_start=0.1
    )
    states: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done = 0
    if keep is not None and keep.is_file():
        kept = torch.load(keep, map_location=DEVICE, weights_only=True)
        done = kept.pop("step")
        for name, state in kept.items():
            states[name].load_state_dict(state)
    for step, (images, labels) in enumerate(islice(batches(data, seed, steps), done, None), done + 1):
        loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if keep is not None and step % KEEP_EVERY == 0:
            told = {name: state.state_dict() for name, state in states.items()} | {"step": step}
            write_atomically(keep, partial(torch.save, told))


def fit_mixers(model: nn.Module, teacher: nn.Module, data: Data, seed: int, steps: int) -> DistillationReport:
    """Fit each mixer to the attention it replaced."""
    return distill_blocks(model, teacher, batches(data, seed, steps), steps, DISTILLING_LR, progress=False)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent."""
    model.eval()
    right = sum(
        int((model(scaled(some)).argmax(1) == told).sum())
        for some, told in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * right / len(labels)


def original(data: Data, seed: int, epochs: int = EPOCHS) -> nn.Module:
    """The ViT with attention, trained once and kept."""
    model = make(seed)
    made_by = zlib.crc32(repr((VIT, BATCH, epochs, LR, TRAINING)).encode())
    path = RUNS / f"vit-{made_by:x}-{seed}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model
    fit(model, data, seed, steps_in(epochs), keep=path.with_suffix(".pt"))
    write_atomically(path, lambda temporary: save_file(model.state_dict(), temporary))
    path.with_suffix(".pt").unlink(missing_ok=True)
    return model


def replaced(model: nn.Module, blocks: Collection[int] | None = None) -> nn.Module:
    atconv.replace_attention(model, blocks=blocks)
    return model


def distilled(
    form: str,
    epochs: int = EPOCHS,
    blocks: Collection[int] | None = None,
    lr: float = LR,
    mixers_lr: float = MIXERS_LR,
) -> Callable[[Data, int], nn.Module]:
    """ATConv for attention, in all blocks or some: fit the mixers, then tune the whole."""

    def run(data: Data, seed: int) -> nn.Module:
        teacher = original(data, seed, epochs)
        model = replaced(copy.deepcopy(teacher), blocks)
        fitting, tuning = STEPS[form].values()
        print(fit_mixers(model, teacher, data, seed + 100, fitting))
        fit(model, data, seed + 200, tuning, lr, mixers_lr)
        return model

    return run


def tuned(data: Data, seed: int) -> nn.Module:
    """The same without fitting the mixers first."""
    model = replaced(copy.deepcopy(original(data, seed)))
    fit(model, data, seed + 200, steps_in(SHORT), mixers_lr=MIXERS_LR)
    return model


def scratch(data: Data, seed: int) -> nn.Module:
    """The same from nothing."""
    model = replaced(make(seed))
    fit(model, data, seed + 200, steps_in(SHORT))
    return model


def short(data: Data, seed: int) -> nn.Module:
    """Attention trained from nothing for a tenth of the original's steps: what the time alone gives."""
    model = make(seed)
    fit(model, data, seed + 200, steps_in(EPOCHS / 10))
    return model


def pooled(pool: str) -> Callable[[Data, int], nn.Module]:
    def run(data: Data, seed: int) -> nn.Module:
        model = replaced(make(seed, class_token=pool == "token", global_pool=pool))
        fit(model, data, seed, steps_in(POOLING_EPOCHS))
        return model

    return run


def steps_in(epochs: float) -> int:
    return int(epochs * TRAINING) // BATCH


ORIGINAL, DISTILLED = "attention", "ATConv, distilled and tuned"
LONG = f"{DISTILLED}, {LONGER} times as long"
HALF = "ATConv in half of the blocks, distilled and tuned"
LATER = "attention, twice as long"
LATER_DISTILLED = "ATConv, distilled and tuned, from attention trained twice as long"
TOKEN, MEAN = "ATConv from scratch, class token", "ATConv from scratch, mean"
JOBS: dict[str, Callable[[Data, int], nn.Module]] = {
    ORIGINAL: original,
    DISTILLED: distilled(DISTILLED),
    LONG: distilled(LONG),
    HALF: distilled(HALF, EPOCHS, FIRST_HALF, GENTLE_LR, GENTLE_MIXERS_LR),
    "ATConv, tuned": tuned,
    "ATConv, from scratch": scratch,
    "attention, from scratch, a tenth of the steps": short,
    TOKEN: pooled("token"),
    MEAN: pooled("avg"),
    LATER: partial(original, epochs=TWICE),
    LATER_DISTILLED: distilled(LATER_DISTILLED, TWICE),
}
ATTENDING, TUNING, FITTING = "attention, a step", "ATConv, a step", "fitting mixers, a step"
TUNING_HALF, FITTING_HALF = "ATConv in half of the blocks, a step", "fitting half of the mixers, a step"
STEPS = {
    ORIGINAL: {ATTENDING: steps_in(EPOCHS)},
    LATER: {ATTENDING: steps_in(TWICE)},
    **{
        form: {FITTING: round(DISTILLING * steps), TUNING: round((1 - DISTILLING) * steps)}
        for form, steps in (
            (DISTILLED, steps_in(SHORT)),
            (LONG, steps_in(LONGER * SHORT)),
            (LATER_DISTILLED, steps_in(SHORT * TWICE / EPOCHS)),
        )
    },
    HALF: {
        FITTING_HALF: round(DISTILLING_HALF * steps_in(SHORT_HALF)),
        TUNING_HALF: round((1 - DISTILLING_HALF) * steps_in(SHORT_HALF)),
    },
    "ATConv, tuned": {TUNING: steps_in(SHORT)},
    "ATConv, from scratch": {TUNING: steps_in(SHORT)},
    "attention, from scratch, a tenth of the steps": {ATTENDING: steps_in(EPOCHS / 10)},
}


def make(seed: int, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **VIT | options).to(DEVICE)


def run(root: str, seeds: Sequence[int], only: Collection[str]) -> None:
    """Whatever rows are missing. Two processes may work side by side, each on seeds of its own."""
    data = Data.read(root)
    RUNS.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for form, job in JOBS.items():
            if form not in only:
                continue
            if any((row["form"], row["seed"]) == (form, str(seed)) for row in read_rows(RESULTS)):
                continue
            model = job(data, seed)
            points = [round(accuracy(model, *side), 2) for side in (data.val, data.test)]
            row = dict(zip(("form", "seed", "val_top1", "top1"), (form, seed, *points), strict=True))
            with FileLock(RUNS / "results.lock"):
                write_rows(RESULTS, [*read_rows(RESULTS), row])
            print(*row.values(), flush=True)


def measure(root: str) -> None:
    """Milliseconds of training steps and of 64 images, by turns, to timing.csv."""
    data, model = Data.read(root), make(0)
    mixed, half = (replaced(copy.deepcopy(model), blocks) for blocks in (None, FIRST_HALF))
    images = torch.randn(64, 1, 28, 28, device=DEVICE)
    teacher = copy.deepcopy(model)

    @torch.inference_mode()
    def infer(one: nn.Module) -> None:
        one.eval()(images)

    def waited(call: Callable[..., object], *arguments: Any) -> Callable[[], None]:
        def run() -> None:
            call(*arguments)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        return run

    steps = median_seconds(
        {
            ATTENDING: waited(fit, model, data, 0, TIMED),
            TUNING: waited(fit, mixed, data, 0, TIMED),
            FITTING: waited(fit_mixers, copy.deepcopy(mixed), teacher, data, 0, TIMED),
            TUNING_HALF: waited(fit, half, data, 0, TIMED),
            FITTING_HALF: waited(fit_mixers, copy.deepcopy(half), teacher, data, 0, TIMED),
        }
    )
    seconds = {name: value / TIMED for name, value in steps.items()}
    models = {"attention": model, "ATConv": mixed, "ATConv in half of the blocks": half}
    seconds |= median_seconds({f"{name}, 64 images": waited(infer, one) for name, one in models.items()})
    threads = torch.get_num_threads()
    rows = [
        {"what": name, "milliseconds": round(1000 * value, 2), "threads": threads}
        for name, value in seconds.items()
    ]
    write_rows(TIMING, rows)


def seconds_of(form: str) -> float:
    """Of training, fitting included."""
    told = {row["what"]: float(row["milliseconds"]) for row in read_rows(TIMING)}
    return sum(count * told[kind] for kind, count in STEPS[form].items()) / 1000


def report() -> None:
    """The tables in README.md, whether the targets were met, and results.png."""
    rows = read_rows(RESULTS)
    print("| form | seeds | top-1, % | seconds |\n| --- | ---: | ---: | ---: |")
    for form in JOBS:
        points = [float(row["top1"]) for row in rows if row["form"] == form]
        if not points:
            continue
        spread = f" ± {statistics.stdev(points):.2f}" if len(points) > 1 else ""
        seconds = f"{seconds_of(form):.0f}" if form in STEPS else ""
        print(f"| {form} | {len(points)} | {statistics.mean(points):.2f}{spread} | {seconds} |")
    draw(rows)
    print()
    for form, other in (
        (DISTILLED, ORIGINAL),
        (LONG, ORIGINAL),
        (HALF, ORIGINAL),
        (LATER_DISTILLED, LATER),
    ):
        share = seconds_of(form) / seconds_of(other)
        print(f"{form}: {_differences(rows, form, other)}; in {share:.1%} of its seconds")
    print(f"Class token: {_differences(rows, TOKEN, MEAN)}")
    for row in read_rows(TIMING):
        print(f"{row['what']}: {row['milliseconds']} ms")


def _differences(rows: list[dict[str, str]], form: str, other: str) -> str:
    """Points of one form less those of another, seed by seed."""
    top1 = {(row["form"], row["seed"]): float(row["top1"]) for row in rows}
    seeds = [seed for name, seed in top1 if name == form and (other, seed) in top1]
    told = ", ".join(f"{top1[form, seed] - top1[other, seed]:+.2f}" for seed in seeds) or "none yet"
    return f"points minus those of {other}, seed by seed: {told}"


def draw(rows: list[dict[str, str]]) -> None:
    """A line a form, a point a run."""
    top1 = {form: [float(row["top1"]) for row in rows if row["form"] == form] for form in STEPS}
    shown = {form: points for form, points in top1.items() if points}
    figure, axis = plt.subplots(figsize=(9.6, 4.0), layout="constrained")
    for place, (form, points) in enumerate(shown.items()):
        axis.scatter(points, [place] * len(points), s=45, alpha=0.8, color="C1" if "ATConv" in form else "C0")
    axis.axvline(statistics.mean(shown[ORIGINAL]), color="C0", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(shown)), [f"{form} · {seconds_of(form):,.0f} s" for form in shown])
    axis.invert_yaxis()
    axis.set(xlabel="top-1 on test images, %")
    figure.suptitle("A small ViT on Fashion-MNIST, and ATConv in its attention's place", fontsize=11)
    axis.grid(alpha=0.3, axis="x")
    save(figure, HERE / "results.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "time"):
        commands.add_parser(name).add_argument("data_root")
    commands.choices["run"].add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    commands.choices["run"].add_argument("--only", nargs="+", choices=JOBS, default=JOBS)
    commands.add_parser("report")
    arguments = parser.parse_args()
    atconv.tune_allocator()
    if arguments.command == "run":
        run(arguments.data_root, arguments.seeds, arguments.only)
    elif arguments.command == "time":
        measure(arguments.data_root)
    else:
        report()


if __name__ == "__main__":
    main()
