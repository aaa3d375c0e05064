"""A small ViT trained on Fashion-MNIST; ATConv put in its attention's place; what a tenth of the time gives.

    python studies/replace/study.py run DATA_ROOT     # one row a job; stop it and start it as you like
    python studies/replace/study.py report

Measure on an idle machine: seconds are part of the answer.
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
from atconv.timing import by_turns
from atconv.training.checkpoint import read_rows, write_rows

HERE = Path(__file__).parent
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
SHORT = 2.0  # epochs in all that a model with ATConv is given: within a tenth of the original's seconds
DISTILLING = 0.3  # of those, spent on fitting mixers to attention
TUNING_LR = 5e-4
POOLING_EPOCHS = 2  # class token against mean, both with ATConv from scratch


@dataclass
class Data:
    """Fashion-MNIST in memory: uint8, N 1 28 28, and labels."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def read(cls, root: str) -> Data:
        train, test = (FashionMNIST(root, train=train) for train in (True, False))
        return cls(train.data[:, None], train.targets, test.data[:, None], test.targets)


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


def scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def fit(model: nn.Module, data: Data, seed: int, steps: int, lr: float) -> float:
    """Train end to end; seconds."""
    started = time.perf_counter()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for images, labels in batches(data, seed, steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - started


@torch.inference_mode()
def accuracy(model: nn.Module, data: Data) -> float:
    """Percent of the test images."""
    model.eval()
    pairs = zip(data.test_images.split(500), data.test_labels.split(500), strict=True)
    right = sum(int((model(scaled(images)).argmax(1) == labels).sum()) for images, labels in pairs)
    return 100 * right / len(data.test_labels)


def original(data: Data, seed: int) -> nn.Module:
    """The ViT with attention, trained once and kept."""
    model = make(seed)
    path = RUNS / f"vit-{seed}.safetensors"
    if not path.is_file():
        RUNS.mkdir(parents=True, exist_ok=True)
        seconds = fit(model, data, seed, EPOCHS * len(data.labels) // BATCH, LR)
        save_file(model.state_dict(), path)
        tell("attention", seed, accuracy(model, data), seconds)
    model.load_state_dict(load_file(path))
    return model


def distilled(data: Data, seed: int) -> tuple[nn.Module, float]:
    """ATConv for attention: fit the mixers, then tune the whole."""
    teacher = original(data, seed)
    model = copy.deepcopy(teacher)
    atconv.replace_attention(model)
    steps = short_steps(data)
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        fitting = int(DISTILLING * steps)
        print(atconv.distill_blocks(model, teacher, batches(data, seed + 100, fitting), fitting))
    fit(model, data, seed + 200, steps - fitting, TUNING_LR)
    return model, time.perf_counter() - started


def tuned(data: Data, seed: int) -> tuple[nn.Module, float]:
    """The same without fitting the mixers first."""
    model = copy.deepcopy(original(data, seed))
    atconv.replace_attention(model)
    return model, fit(model, data, seed + 200, short_steps(data), TUNING_LR)


def scratch(data: Data, seed: int) -> tuple[nn.Module, float]:
    """The same from nothing."""
    model = make(seed)
    atconv.replace_attention(model)
    return model, fit(model, data, seed + 200, short_steps(data), LR)


def pooled(pool: str) -> Callable[[Data, int], tuple[nn.Module, float]]:
    def run(data: Data, seed: int) -> tuple[nn.Module, float]:
        model = make(seed, class_token=pool == "token", global_pool=pool)
        atconv.replace_attention(model)
        return model, fit(model, data, seed, POOLING_EPOCHS * len(data.labels) // BATCH, LR)

    return run


JOBS: dict[str, Callable[[Data, int], tuple[nn.Module, float]]] = {
    "ATConv, distilled and tuned": distilled,
    "ATConv, tuned": tuned,
    "ATConv, from scratch": scratch,
    "ATConv from scratch, class token": pooled("token"),
    "ATConv from scratch, mean": pooled("avg"),
}


def make(seed: int, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **VIT | options)


def short_steps(data: Data) -> int:
    return int(SHORT * len(data.labels)) // BATCH


def tell(form: str, seed: int, percent: float, seconds: float) -> None:
    row = {"form": form, "seed": seed, "top1": round(percent, 2), "seconds": round(seconds, 1)}
    write_rows(HERE / "results.csv", [*read_rows(HERE / "results.csv"), row])
    print(*row.values(), flush=True)


def run(root: str) -> None:
    """Whatever rows are missing."""
    data = Data.read(root)
    for seed in SEEDS:
        original(data, seed)
        done = {(row["form"], int(row["seed"])) for row in read_rows(HERE / "results.csv")}
        for form, job in JOBS.items():
            if (form, seed) not in done:
                model, seconds = job(data, seed)
                tell(form, seed, accuracy(model, data), seconds)


@torch.inference_mode()
def latency() -> dict[str, float]:
    """Milliseconds for 64 images, by turns."""
    models = {"attention": make(0).eval(), "ATConv": make(0).eval()}
    print(atconv.replace_attention(models["ATConv"]))
    images = torch.randn(64, 1, 28, 28)
    seconds = by_turns({name: partial(model, images) for name, model in models.items()})
    return {name: 1000 * value for name, value in seconds.items()}


def report() -> None:
    """The table in README.md."""
    rows = read_rows(HERE / "results.csv")
    print("| form | seeds | top-1, % | seconds |\n| --- | --- | --- | --- |")
    for form in dict.fromkeys(row["form"] for row in rows):
        mine = [row for row in rows if row["form"] == form]
        points = [float(row["top1"]) for row in mine]
        spread = f" ± {statistics.stdev(points):.2f}" if len(points) > 1 else ""
        seconds = statistics.median(float(row["seconds"]) for row in mine)
        print(f"| {form} | {len(mine)} | {statistics.mean(points):.2f}{spread} | {seconds:.0f} |")
    milliseconds = latency()
    print("; ".join(f"{name}: {value:.1f} ms for 64 images" for name, value in milliseconds.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("data_root")
    commands.add_parser("report")
    arguments = parser.parse_args()
    atconv.tune_allocator()
    if arguments.command == "run":
        run(arguments.data_root)
    else:
        report()


if __name__ == "__main__":
    main()
