"""How good a detector is: COCO's mean average precision, of boxes and of masks, and by class."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from atconv.data.annotated import batches_of_equal_size
from atconv.data.coco import BadAnnotations, CocoSplit, open_coco
from atconv.data.images import Mode
from atconv.engine import run as runs
from atconv.engine.progress import make_table, plain_console, track
from atconv.io import write_rows
from atconv.tasks.common.annotated_task import check_batch_size, save_evaluation
from atconv.tasks.detection.data import Target, eval_batch
from atconv.tasks.detection.model import Detector, open_detector
from atconv.tasks.detection.plots import draw_side

__all__ = ["Evaluation", "evaluate", "evaluate_side", "mean_average_precision", "report_side"]

_FIGURES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")


@dataclass(frozen=True)
class Evaluation:
    """Figures of one detector on one set, in percent; None where there is nothing to measure."""

    images: int
    figures: dict[str, float | None]
    """COCO's, "box_" before those of boxes and "mask_" before those of masks"""
    per_class: list[dict[str, Any]]
    images_per_second: float
    """reading and model together"""


def evaluate(
    run: str | Path,
    data: str,
    split: Literal["auto", "train", "val", "test"] = "auto",
    batch_size: int = 8,
    bad_annotations: BadAnnotations = "reject",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    console: Console | None = None,
) -> tuple[Evaluation, Path]:
    """Evaluate a detection run's best model, print tables, draw pictures, and write to RUN/evaluation/.

    Args:
        run: the run's folder.
        data: folder of pictures and annotations, as in training.
        split: the side; "auto" takes test, else val, else the only one.
        batch_size: images in one forward pass.
        bad_annotations: refuse annotations that are wrong, or skip them: they are named and left out.
        device: where the model runs; auto takes an accelerator if there is one.

    Returns:
        the figures, and the folder that metrics.json, per_class.csv and predictions.png were written to.

    Raises:
        FileNotFoundError, ValueError: no such run, no such data, classes the run does not know, or
            `batch_size` < 1.
    """
    check_batch_size(batch_size)
    console = console or plain_console()
    opened = open_detector(run)
    sides = open_coco(
        data,
        opened.masks,
        classes=opened.classes,
        split=split,
        bad_annotations=bad_annotations,
    )
    [(name, side)] = sides.items()
    opened.model.to(runs.resolve_device(device))

    def report(title: str, folder: Path) -> Evaluation:
        return report_side(opened, side, title, batch_size, folder, console)

    return save_evaluation(run, data, name, report, console)


def report_side(
    opened: Detector, side: CocoSplit, title: str, batch_size: int, folder: Path, console: Console
) -> Evaluation:
    """Evaluate on a side, print tables, write per_class.csv and predictions.png."""
    found = evaluate_side(opened, side, batch_size, console)
    rows = [(name.replace("_", " "), _percent(value)) for name, value in found.figures.items()]
    rows += [("images", str(found.images)), ("images/s", f"{found.images_per_second:.1f}")]
    console.print(make_table(title, ("figure", "value"), rows))
    columns = [name for name in found.per_class[0] if name != "class"]
    cells = [[row["class"], *(_percent(row[name]) for name in columns)] for row in found.per_class]
    console.print(make_table("classes", ("class", *(c.replace("_", " ") for c in columns)), cells))
    write_rows(folder / "per_class.csv", found.per_class)
    draw_side(opened, side, folder / "predictions.png")
    return found


def evaluate_side(opened: Detector, side: CocoSplit, batch_size: int, console: Console) -> Evaluation:
    """Run a detector over a side and compute every figure."""
    metric = _metric(opened.masks, whole=True)
    started = time.perf_counter()
    _update(metric, opened.model, side, range(len(side)), opened.mode, opened.masks, batch_size, console)
    speed = len(side) / (time.perf_counter() - started)
    found = metric.compute()
    figures: dict[str, float | None] = {}
    per_class: list[dict[str, Any]] = [{"class": name} for name in opened.classes]
    for kind, prefix in _kinds(opened.masks):
        figures |= {f"{kind}_{name}": _figure(found[f"{prefix}{name}"]) for name in _FIGURES}
        values = found[f"{prefix}map_per_class"].reshape(-1)
        by_label = dict(zip(found["classes"].reshape(-1).tolist(), values, strict=True))
        for label, row in enumerate(per_class, 1):
            row[f"{kind}_map"] = _figure(by_label.get(label, torch.tensor(-1.0)))
    return Evaluation(len(side), figures, per_class, speed)


def mean_average_precision(
    model: nn.Module, side: CocoSplit, positions: Sequence[int], mode: Mode, masks: bool, batch_size: int
) -> dict[str, float]:
    """COCO's mean average precision in percent: map and map_50 of boxes, and mask_map for masks.

    Several processes give each their positions, and all get the figures of the whole.
    """
    metric = _metric(masks, whole=False)
    _update(metric, model, side, positions, mode, masks, batch_size, Console(quiet=True))
    found = metric.compute()
    kinds = dict(_kinds(masks))
    told = {"map": found[f"{kinds['box']}map"], "map_50": found[f"{kinds['box']}map_50"]}
    told |= {"mask_map": found[f"{kinds['mask']}map"]} if masks else {}
    return {name: 100 * float(value) for name, value in told.items()}


@torch.inference_mode()
def _update(
    metric: MeanAveragePrecision,
    model: nn.Module,
    side: CocoSplit,
    positions: Sequence[int],
    mode: Mode,
    masks: bool,
    batch_size: int,
    console: Console,
) -> None:
    device = next(model.parameters()).device
    for batch in track(batches_of_equal_size(side, positions, batch_size), console, "evaluating"):
        images, targets = eval_batch(side, batch, mode, masks)
        found = model([image.to(device) for image in images])
        metric.update([_as_metric(one, masks) for one in found], targets)


def _as_metric(found: dict[str, Tensor], masks: bool) -> Target:
    told: Target = {name: found[name].float().cpu() for name in ("boxes", "scores")}
    told["labels"] = found["labels"].cpu()
    if masks:
        told["masks"] = (found["masks"][:, 0] > 0.5).cpu()
    return told


def _metric(masks: bool, whole: bool) -> MeanAveragePrecision:
    """Of one process that sees the whole side, by class too; or of several that see a part each."""
    metric = MeanAveragePrecision(
        iou_type=("bbox", "segm") if masks else "bbox",
        class_metrics=whole,
        backend="faster_coco_eval",
        sync_on_compute=not whole,
    )
    metric.warn_on_many_detections = False
    return metric


def _kinds(masks: bool) -> list[tuple[str, str]]:
    """What is measured, and how torchmetrics begins its names."""
    return [("box", "bbox_"), ("mask", "segm_")] if masks else [("box", "")]


def _figure(value: Tensor) -> float | None:
    """Percent; −1 is how COCO says that there was nothing."""
    return None if value < 0 else 100 * float(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"
