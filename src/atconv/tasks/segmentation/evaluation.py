"""How good a segmenter is: intersection over union of every class, their mean, the share of right pixels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from atconv.data.annotated import batches_of_equal_size
from atconv.data.masks import IGNORED, MaskSplit, open_masks
from atconv.engine import run as runs
from atconv.engine.progress import make_table, plain_console, track
from atconv.io import write_rows
from atconv.tasks.common.annotated_task import check_batch_size, save_evaluation
from atconv.tasks.segmentation.data import eval_batch
from atconv.tasks.segmentation.model import OpenSegmenter, open_segmenter
from atconv.tasks.segmentation.plots import draw_side

__all__ = ["Evaluation", "count_pixels", "evaluate", "evaluate_side", "mean_iou", "report_side"]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one segmenter on one set, in percent."""

    images: int
    miou: float
    """mean over the classes that occur, in masks or predictions"""
    pixel_accuracy: float
    per_class: list[dict[str, Any]]
    """class, iou (None where it does not occur), accuracy (share of its pixels), pixels"""
    images_per_second: float
    """reading and model together"""
    flip_tta: bool
    """whether each picture was classified together with its mirror image"""


def evaluate(
    run: str | Path,
    data: str,
    split: Literal["auto", "train", "val", "test"] = "auto",
    flip_tta: bool | None = None,
    batch_size: int = 8,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    console: Console | None = None,
) -> tuple[Evaluation, Path]:
    """Evaluate a segmentation run's best model, print tables, draw pictures, and write to RUN/evaluation/.

    Every picture is judged at its own size.

    Args:
        run: the run's folder.
        data: folder of pictures and masks, as in training.
        split: the side; "auto" takes test, else val, else the only one.
        flip_tta: classify the mean of every picture and its mirror image; default: as the run was configured.
        batch_size: images in one forward pass.
        device: where the model runs; auto takes an accelerator if there is one.

    Returns:
        the figures, and the folder that metrics.json, per_class.csv and predictions.png were written to.

    Raises:
        FileNotFoundError, ValueError: no such run, no such data, classes the run does not know, or
            `batch_size` < 1.
    """
    check_batch_size(batch_size)
    console = console or plain_console()
    opened = open_segmenter(run, flip_tta)
    [(name, side)] = open_masks(data, classes=opened.classes, split=split).items()
    opened.model.to(runs.resolve_device(device))

    def report(title: str, folder: Path) -> Evaluation:
        return report_side(opened, side, title, batch_size, folder, console)

    return save_evaluation(run, data, name, report, console)


def report_side(
    opened: OpenSegmenter, side: MaskSplit, title: str, batch_size: int, folder: Path, console: Console
) -> Evaluation:
    """Evaluate on a side, print tables, write per_class.csv and predictions.png."""
    found = evaluate_side(opened, side, batch_size, console)
    rows = [
        ("mean IoU", f"{found.miou:.2f} %"),
        ("right pixels", f"{found.pixel_accuracy:.2f} %"),
        ("images", str(found.images)),
        ("images/s", f"{found.images_per_second:.1f}"),
        ("flip TTA", "yes" if found.flip_tta else "no"),
    ]
    console.print(make_table(title, ("figure", "value"), rows))
    cells = [
        (row["class"], *("–" if row[n] is None else f"{row[n]:.1f} %" for n in ("iou", "accuracy")))
        for row in found.per_class
    ]
    console.print(make_table("classes", ("class", "IoU", "right pixels"), cells))
    write_rows(folder / "per_class.csv", found.per_class)
    draw_side(opened, side, folder / "predictions.png")
    return found


def evaluate_side(opened: OpenSegmenter, side: MaskSplit, batch_size: int, console: Console) -> Evaluation:
    """Run a segmenter over a side and compute every figure."""
    started = time.perf_counter()
    counts = count_pixels(opened, side, range(len(side)), batch_size, console)
    speed = len(side) / (time.perf_counter() - started)
    right, masked, found = counts.diag(), counts.sum(1), counts.sum(0)
    union = masked + found - right
    per_class = [
        {
            "class": name,
            "iou": 100 * int(right[i]) / int(union[i]) if union[i] else None,
            "accuracy": 100 * int(right[i]) / int(masked[i]) if masked[i] else None,
            "pixels": int(masked[i]),
        }
        for i, name in enumerate(opened.classes)
    ]
    accuracy = 100 * int(right.sum()) / max(1, int(counts.sum()))
    return Evaluation(len(side), mean_iou(counts), accuracy, per_class, speed, opened.flip_tta)


@torch.inference_mode()
def count_pixels(
    opened: OpenSegmenter, side: MaskSplit, positions: Sequence[int], batch_size: int, console: Console
) -> Tensor:
    """How many pixels of each class (row) were taken for each class (column), K K."""
    classes = len(opened.classes)
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    for batch in track(batches_of_equal_size(side, positions, batch_size), console, "evaluating"):
        inputs, masks = eval_batch(side, batch, opened.transform)
        height, width = masks[0].shape
        for mask, found in zip(masks, opened.classify(inputs, (height, width)), strict=True):
            kept = mask != IGNORED
            pairs = mask[kept].long() * classes + found[kept]
            counts += torch.bincount(pairs, minlength=classes * classes)
    return counts.reshape(classes, classes)


def mean_iou(counts: Tensor) -> float:
    """Mean intersection over union in percent, of the classes that occur in masks or predictions."""
    right = counts.diag()
    union = counts.sum(0) + counts.sum(1) - right
    there = union > 0
    return 100 * float((right[there] / union[there]).mean()) if there.any() else 0.0
