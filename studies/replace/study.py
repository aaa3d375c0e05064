"""A small ViT trained on Fashion-MNIST; ATConv put in its attention's place; what a tenth of the time gives.

    python studies/replace/study.py run DATA_ROOT     # one row a job; stop it and start it as you like
    python studies/replace/study.py time              # milliseconds of inference
    python studies/replace/study.py report            # tables and results.png

Run and time on an idle machine: seconds are part of the answer. `val_top1` is the accuracy on 5,000 training
images that are held out: whoever changes a constant chooses by it, and the test images judge.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

import atconv
from atconv.drawing import plt, save
from atconv.timing import by_turns
from atconv.training.checkpoint import read_rows, write_atomically, write_rows
from atconv.training.devices import available_precision

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
RUNS = Path("runs/study-replace")
SEEDS = (0, 1, 2)
VIT = {
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
BATCH, EPOCHS, LR = 128, 10, 2e-3
SHORT = 2.2  # epochs in all that a model with ATConv is given: within a tenth of the original's seconds
DISTILLING, DISTILLING_LR = 0.15, 3e-3  # share of those that fits mixers to attention
TUNING_LR = 4e-3
HELD_OUT = 5000  # training images that nothing is trained on
POOLING_EPOCHS = 2  # class token against mean, both with ATConv from scratch


@dataclass
class Data:
    """Fashion-MNIST in memory: uint8, N 1 28 28, and labels."""

    images: Tensor
    labels: Tensor
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def read(cls, root: str) -> Data:
        train, test = (FashionMNIST(root, train=train) for train in (True, False))
        images, labels = train.data[:, None], train.targets
        val = images[-HELD_OUT:], labels[-HELD_OUT:]
        return cls(images[:-HELD_OUT], labels[:-HELD_OUT], val, (test.data[:, None], test.targets))


def batches(data: Data, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, mirrored at random and shifted by up to two pixels."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(data.labels), generator=generator)
        index, order = order[:BATCH], order[BATCH:]
        down, right = torch.randint(5, (2,), generator=generator).tolist()
        images = F.pad(scaled(data.images[index]), (2, 2, 2, 2), value=-1.0)
        images = images[:, :, down : down + 28, right : right + 28]
        mirrored = torch.rand(BATCH, generator=generator) < 0.5
        yield torch.where(mirrored[:, None, None, None], images.flip(3), images), data.labels[index]


def autocast() -> torch.autocast:
    """bfloat16 where this CPU has it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=available_precision("bf16", "cpu") == "bf16")


def scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def fit(model: nn.Module, data: Data, seed: int, steps: int, lr: float) -> float:
    """Train end to end; seconds."""
    started = time.perf_counter()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for images, labels in batches(data, seed, steps):
        with autocast():
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - started


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent."""
    model.eval()
    right = sum(
        int((model(scaled(some)).argmax(1) == told).sum())
        for some, told in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * right / len(labels)


def original(data: Data, seed: int) -> nn.Module:
    """The ViT with attention, trained once and kept."""
    model = make(seed)
    path = RUNS / f"vit-{seed}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model
    RUNS.mkdir(parents=True, exist_ok=True)
    seconds = fit(model, data, seed, EPOCHS * len(data.labels) // BATCH, LR)
    tell(ORIGINAL, seed, model, data, seconds)
    write_atomically(path, lambda temporary: save_file(model.state_dict(), temporary))
    return model


def distilled(data: Data, seed: int) -> tuple[nn.Module, float]:
    """ATConv for attention: fit the mixers, then tune the whole."""
    teacher = original(data, seed)
    model = copy.deepcopy(teacher)
    atconv.replace_attention(model)
    steps = short_steps(data)
    started = time.perf_counter()
    with autocast():
        fitting = int(DISTILLING * steps)
        some = batches(data, seed + 100, fitting)
        print(atconv.distill_blocks(model, teacher, some, fitting, DISTILLING_LR, progress=False))
    fit(model, data, seed + 200, steps - fitting, TUNING_LR)
    return model, time.perf_counter() - started


def tuned(data: Data, seed: int) -> tuple[nn.Module, float]:
    """The same without fitting the mixers first."""
    model = copy.deepcopy(original(data, seed))
    atconv.replace_attention(model)
    return model, fit(model, data, seed + 200, short_steps(data), TUNING_LR)


def short(data: Data, seed: int) -> tuple[nn.Module, float]:
    """Attention trained from nothing for a tenth of the original's steps: what the time alone gives."""
    model = make(seed)
    return model, fit(model, data, seed + 200, EPOCHS * len(data.labels) // BATCH // 10, LR)


def scratch(data: Data, seed: int) -> tuple[nn.Module, float]:
    """The same from nothing."""
    model = make(seed)
    atconv.replace_attention(model)
    return model, fit(model, data, seed + 200, short_steps(data), TUNING_LR)


def pooled(pool: str) -> Callable[[Data, int], tuple[nn.Module, float]]:
    def run(data: Data, seed: int) -> tuple[nn.Module, float]:
        model = make(seed, class_token=pool == "token", global_pool=pool)
        atconv.replace_attention(model)
        return model, fit(model, data, seed, POOLING_EPOCHS * len(data.labels) // BATCH, LR)

    return run


ORIGINAL, DISTILLED = "attention", "ATConv, distilled and tuned"
JOBS: dict[str, Callable[[Data, int], tuple[nn.Module, float]]] = {
    DISTILLED: distilled,
    "ATConv, tuned": tuned,
    "ATConv, from scratch": scratch,
    "attention, from scratch, a tenth of the steps": short,
    "ATConv from scratch, class token": pooled("token"),
    "ATConv from scratch, mean": pooled("avg"),
}


def make(seed: int, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **VIT | options)


def short_steps(data: Data) -> int:
    return int(SHORT * len(data.labels)) // BATCH


def tell(form: str, seed: int, model: nn.Module, data: Data, seconds: float) -> None:
    """Add a row, or write it anew."""
    row = {
        "form": form,
        "seed": seed,
        "val_top1": round(accuracy(model, *data.val), 2),
        "top1": round(accuracy(model, *data.test), 2),
        "seconds": round(seconds, 1),
    }
    others = [r for r in read_rows(RESULTS) if (r["form"], r["seed"]) != (form, str(seed))]
    write_rows(RESULTS, [*others, row])
    print(*row.values(), flush=True)


def run(root: str) -> None:
    """Whatever rows are missing."""
    data = Data.read(root)
    for seed in SEEDS:
        original(data, seed)
        done = {(row["form"], int(row["seed"])) for row in read_rows(RESULTS)}
        for form, job in JOBS.items():
            if (form, seed) not in done:
                model, seconds = job(data, seed)
                tell(form, seed, model, data, seconds)


@torch.inference_mode()
def measure() -> None:
    """Milliseconds for 64 images, by turns, to timing.csv."""
    models = {ORIGINAL: make(0).eval(), "ATConv": make(0).eval()}
    print(atconv.replace_attention(models["ATConv"]))
    images = torch.randn(64, 1, 28, 28)
    seconds = by_turns({name: partial(model, images) for name, model in models.items()})
    rows = [{"form": n, "milliseconds": round(1000 * value, 2)} for n, value in seconds.items()]
    write_rows(HERE / "timing.csv", rows)


def report() -> None:
    """The tables in README.md, whether the targets were met, and results.png."""
    rows = read_rows(RESULTS)
    print("| form | seeds | top-1, % | seconds |\n| --- | ---: | ---: | ---: |")
    for form in dict.fromkeys(row["form"] for row in rows):
        mine = [row for row in rows if row["form"] == form]
        points = [float(row["top1"]) for row in mine]
        spread = f" ± {statistics.stdev(points):.2f}" if len(points) > 1 else ""
        seconds = statistics.median(float(row["seconds"]) for row in mine)
        print(f"| {form} | {len(mine)} | {statistics.mean(points):.2f}{spread} | {seconds:.0f} |")
    draw(rows)
    by_form = {(row["form"], row["seed"]): row for row in rows}
    print("\n| seed | distilled − original, points | its share of the seconds |\n| --- | ---: | ---: |")
    for seed in map(str, SEEDS):
        if (DISTILLED, seed) in by_form:
            new, old = by_form[DISTILLED, seed], by_form[ORIGINAL, seed]
            points = float(new["top1"]) - float(old["top1"])
            print(f"| {seed} | {points:+.2f} | {float(new['seconds']) / float(old['seconds']):.1%} |")
    for row in read_rows(HERE / "timing.csv"):
        print(f"\n{row['form']}: {row['milliseconds']} ms for 64 images", end="")
    print()


def draw(rows: list[dict[str, str]]) -> None:
    """Accuracy against training seconds: a point a run."""
    figure, axis = plt.subplots(figsize=(7.4, 4.2), layout="constrained")
    for form in (ORIGINAL, *JOBS):
        mine = [row for row in rows if row["form"] == form]
        points = [(float(row["seconds"]), float(row["top1"])) for row in mine]
        if points and "class token" not in form and "mean" not in form:
            axis.scatter(*zip(*points, strict=True), s=40, alpha=0.8, label=form)
    axis.set(xscale="log", xlabel="seconds of training, fitting included", ylabel="top-1 on test images, %")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.set_title("A small ViT on Fashion-MNIST: attention, and ATConv in its place", fontsize=11)
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="lower right")
    save(figure, HERE / "results.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("data_root")
    commands.add_parser("time")
    commands.add_parser("report")
    arguments = parser.parse_args()
    atconv.tune_allocator()
    if arguments.command == "run":
        run(arguments.data_root)
    elif arguments.command == "time":
        measure()
    else:
        report()


if __name__ == "__main__":
    main()
