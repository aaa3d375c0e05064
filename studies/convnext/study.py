"""Routing added to a trained ConvNeXt from its exact start, against plain tuning for as many seconds.

    python -m studies.convnext.study time DATA       # CPU milliseconds of a step, by variant
    python -m studies.convnext.study run DATA        # every row that is missing, in any number of steps
    python -m studies.convnext.study report          # the tables in README.md, and results.png

DATA holds CIFAR-10 as files, train/CLASS/*.jpg and test/CLASS/*.jpg. `time` comes first: steps of tuning are
TUNING_SECONDS divided by the time of one, in seconds of CPU that the process took with one thread, so other
load on the machine matters little. `val_top1` is the accuracy on 5,000 training images that are held out.
"""

from __future__ import annotations

import copy
import functools
import os
import statistics
import time as clock
import zlib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

import atconv
from atconv.analysis.routing import collect_kernels
from atconv.io import read_rows, save_tensors, write_rows
from atconv.modules import inhibition_strength
from atconv.plots import plt, save
from atconv.tasks.common.sweep import Job, Sweep, confidence_half_width, seed_by_seed
from studies import harness
from studies.replace.training import BATCH, LR, Data, accuracy, fit, scaled

HERE = Path(__file__).parent
CONVNEXT: dict[str, Any] = {
    "num_classes": 10,
    "patch_size": 2,
    "depths": (1, 1, 2, 1),
    "dims": (24, 48, 96, 128),
    "ls_init_value": None,
}
SEEDS = 3
TRAINING, HELD_OUT = 2000, 500  # images of each class
STEPS = 5000  # of the original: eight epochs
TUNING_SECONDS, TUNING_LR = 30, 5e-4
TIMED, ROUNDS = 8, 9  # steps of a measurement, and measurements

TRAINED, PLAIN, ROUTING = "trained", "plain tuning", "routing added"
WITHOUT, LONGER = "routing added, no inhibition", "routing added, as many steps as plain tuning"
VARIANTS = (TRAINED, PLAIN, ROUTING, WITHOUT, LONGER)
TUNED = VARIANTS[1:]


def make_convnext(seed: int) -> nn.Module:
    """The network, newly initialized."""
    torch.manual_seed(seed)
    return ConvNeXt(**CONVNEXT)


def with_routing(model: nn.Module, inhibition: bool = True) -> nn.Module:
    """A copy with ATConv for each depthwise convolution, which computes the same."""
    model = copy.deepcopy(model)
    atconv.replace_convolution(model)
    for mixer in model.modules():
        if isinstance(mixer, atconv.ATConv2d) and not inhibition:
            assert mixer.kernel_bias is not None
            strength = 0.5  # which the start makes up for
            mixer.kernel_bias.data -= strength * mixer.kernel_bias.data.mean(1, keepdim=True)
            mixer.alpha, mixer.inhibition = None, False
    return model


def variant_of(model: nn.Module, variant: str) -> nn.Module:
    """What is tuned, from a trained network."""
    return copy.deepcopy(model) if variant == PLAIN else with_routing(model, variant != WITHOUT)


@functools.cache
def load_data(root: str) -> Data:
    """Training images without those held out, held-out images as `val`, test images: N 3 32 32."""
    train, test = (_read(Path(root) / split) for split in ("train", "test"))
    held_out = torch.arange(len(train[1])) % (TRAINING + HELD_OUT) >= TRAINING
    (images, val_images), (labels, val_labels) = ((part[~held_out], part[held_out]) for part in train)
    return Data(images, labels, (val_images, val_labels), test)


def _read(folder: Path) -> tuple[Tensor, Tensor]:
    """Images, uint8, and labels: the first TRAINING + HELD_OUT of each class."""
    classes = sorted(path.name for path in folder.glob("*") if path.is_dir())
    paths = [
        path for name in classes for path in sorted((folder / name).glob("*.jpg"))[: TRAINING + HELD_OUT]
    ]
    if not paths:
        raise FileNotFoundError(f"{folder} has no images: give the folder that holds train/CLASS/*.jpg")
    with ThreadPoolExecutor(2) as readers:
        images = np.stack(list(readers.map(lambda path: np.asarray(Image.open(path).convert("RGB")), paths)))
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def original(data: Data, seed: int, folder: Path) -> nn.Module:
    """The network, trained once: the other variants start from it."""
    model = make_convnext(seed)
    digest = zlib.crc32(repr((CONVNEXT, BATCH, STEPS, LR)).encode())
    path = folder / f"convnext-{digest:x}-{seed}.safetensors"
    with FileLock(path.with_suffix(".lock")):  # several rows may want it at once
        if not path.is_file():
            checkpoint = path.with_suffix(".pt")
            fit(model, data, seed, STEPS, checkpoint=checkpoint)
            save_tensors(model.state_dict(), path)
            checkpoint.unlink(missing_ok=True)
    model.load_state_dict(load_file(path))
    return model


def steps_of(times: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Steps of tuning, by variant, from the rows of timing.csv.

    Raises:
        FileNotFoundError: there are none yet.
    """
    if not times:
        raise FileNotFoundError("there is no timing.csv yet: run the stage `time` first")
    seconds = {row["what"]: float(row["milliseconds"]) / 1000 for row in times}
    steps = {name: round(TUNING_SECONDS / seconds[name]) for name in (PLAIN, ROUTING, WITHOUT)}
    return steps | {LONGER: steps[PLAIN]}


def plan(args: Namespace) -> tuple[Sweep, Sequence[Job]]:
    torch.set_num_threads(1)
    make = partial(make_row, args.data, steps_of(read_rows(args.out / "timing.csv")))
    sweep = Sweep(args.out / "results.csv", args.runs, make, torch.device("cpu"), "fp32")
    groups = ((TRAINED,), (PLAIN, ROUTING), (WITHOUT,), (LONGER,))  # the question first
    return sweep, [job for group in groups for job in seed_by_seed(dict.fromkeys(group, SEEDS))]


def make_row(root: str, steps: Mapping[str, int], job: Job, run: Path) -> dict[str, Any]:
    run.mkdir(parents=True, exist_ok=True)
    data, model, count = load_data(root), original(load_data(root), job.seed, run.parent), STEPS
    if job.variant != TRAINED:
        count, model = steps[job.variant], variant_of(model, job.variant)
        fit(model, data, job.seed + 100, count, TUNING_LR, checkpoint=run / "tuning.pt")
    row: dict[str, Any] = {"steps": count}
    row |= {"val_top1": round(accuracy(model, *data.val), 2), "top1": round(accuracy(model, *data.test), 2)}
    if job.variant not in (TRAINED, PLAIN):
        row |= routing_of(model, data.val[0][:: len(data.val[0]) // 500 or 1])
    return row


@torch.no_grad()
def routing_of(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """How much routing and inhibition moved: 0 and 0.5 at the start.

    `routed` is the share of the kernels' energy that differs from image to image, the mean over mixers.
    """
    shares = []
    for kernels in collect_kernels(model, scaled(images)).values():
        shares.append(float(kernels.var(0, correction=0).sum() / kernels.square().mean(0).sum()))
    strengths = inhibition_strength(model).values()
    row: dict[str, Any] = {"routed": round(statistics.mean(shares), 4)}
    row["routed_by_layer"] = " ".join(f"{share:.3f}" for share in shares)
    return row | {"lambda": round(float(torch.cat(list(strengths)).mean()), 3) if strengths else ""}


def time(args: Namespace) -> None:
    """CPU milliseconds of a training step of each variant, interleaved, to timing.csv."""
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    data = Data(images, torch.arange(BATCH) % 10, (images, images), (images, images))
    models = {name: variant_of(make_convnext(0), name) for name in (PLAIN, ROUTING, WITHOUT)}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS + 1):  # the first is not counted
        for name, model in models.items():
            before = clock.process_time()
            fit(model, data, 0, TIMED)
            seconds[name].append((clock.process_time() - before) / TIMED)
    rows = [
        {"what": name, "milliseconds": round(1000 * statistics.median(values[1:]), 2), "threads": 1}
        for name, values in seconds.items()
    ]
    write_rows(args.out / "timing.csv", rows)


def report(args: Namespace) -> None:
    rows, times = read_rows(args.out / "results.csv"), read_rows(args.out / "timing.csv")
    steps, milliseconds = steps_of(times), {row["what"]: float(row["milliseconds"]) for row in times}
    print("| variant | seeds | steps | CPU seconds | top-1, % | routed, % | λ |\n" + "| --- " * 7 + "|")
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        count = steps.get(name, STEPS)
        cost = count * milliseconds.get(name, milliseconds[ROUTING if name == LONGER else PLAIN]) / 1000
        cells = [_spread(own, "top1", 1), _spread(own, "routed", 100), _spread(own, "lambda", 1)]
        print(f"| {name} | {len(own)} | {count:,} | {cost:.0f} | {' | '.join(cells)} |")
    print()
    for name, other in [(name, PLAIN) for name in TUNED[1:]] + [(PLAIN, TRAINED), (ROUTING, TRAINED)]:
        difference = harness.paired_difference(rows, "top1", name, other)
        print(f"{name} minus {other}: {difference or 'too few pairs'}")
    plot(rows, args.out / "results.png")


def _spread(rows: Sequence[Mapping[str, str]], metric: str, unit: float) -> str:
    values = [unit * float(row[metric]) for row in rows if row.get(metric)]
    return harness.mean_and_deviation(values, ".3g" if unit > 1 else ".4g", ".2g") if values else ""


def plot(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Left a point a run, a marker for each seed; right the differences from plain tuning, with intervals."""
    shown = [name for name in VARIANTS if any(row["variant"] == name for row in rows)]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.4, 1.5 + 0.55 * len(shown)), sharey=True, layout="constrained"
    )
    for row in rows:
        color, marker = _color(row["variant"]), "os^Dv"[int(row["seed"]) % 5]
        place = shown.index(row["variant"])
        left.scatter(float(row["top1"]), place, s=50, alpha=0.8, color=color, marker=marker)
    for seed in sorted({int(row["seed"]) for row in rows}):
        left.scatter([], [], color="0.4", marker="os^Dv"[seed % 5], label=f"seed {seed}")
    for place, name in enumerate(shown):
        pairs = harness.pairs_by_seed(rows, "top1", name, PLAIN) if name != PLAIN else []
        right.scatter(pairs, [place] * len(pairs), s=20, color="0.7")
        if pairs:
            half = confidence_half_width(pairs)
            right.errorbar(statistics.mean(pairs), place, xerr=half, fmt="D", capsize=4, color=_color(name))
    left.set_yticks(range(len(shown)), shown)
    left.set_ylim(len(shown) - 0.5, -0.5)
    left.set(xlabel="top-1 on test images, %")
    right.axvline(0, color="gray", linewidth=1)
    right.set_xlabel(f"minus {PLAIN}, points (gray: a seed;\nbar: 95 % interval of the mean)")
    figure.legend(loc="outside right center", frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3, axis="x")
    figure.suptitle("A small ConvNeXt on CIFAR-10, tuned as it is or with routing", fontsize=11)
    save(figure, path)


def _color(variant: str) -> str:
    return "C1" if "routing" in variant else "C0"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    harness.main(__doc__, HERE, plan, report, {"time": time}, ("run", "time"))
