"""How good a segmenter is: intersection over union of every class, their mean, the share of right pixels.

torchmetrics counts the pixels. What follows from the counts is computed here: torchmetrics' MeanIoU averages
over images, and gives 0 for a class that occurs nowhere, which has no IoU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from atconv.data.masks import IGNORED
from atconv.engine.tables import Table, speed_text
from atconv.tasks.common.annotated_predictor import AnnotatedMetrics

__all__ = ["SegmentationMetrics", "count_pixels", "mean_iou", "per_class", "pixel_accuracy"]


@dataclass(frozen=True, kw_only=True)
class SegmentationMetrics(AnnotatedMetrics):
    """Metrics of one segmenter on one split, in percent. By class: IoU (None where it does not occur),
    accuracy (share of its pixels), pixels."""

    miou: float
    """mean over the classes that occur, in masks or predictions"""
    pixel_accuracy: float
    flip_tta: bool
    """whether predictions for each image and its mirror image were averaged"""

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"flip_tta": self.flip_tta}

    def tables(self, title: str) -> list[Table]:
        rows = [
            ("mean IoU", f"{self.miou:.2f} %"),
            ("right pixels", f"{self.pixel_accuracy:.2f} %"),
            ("images", str(self.images)),
            ("speed", speed_text(self.images_per_second)),
            ("flip TTA", "yes" if self.flip_tta else "no"),
        ]
        cells = [
            (row["class"], *("–" if row[n] is None else f"{row[n]:.1f} %" for n in ("iou", "accuracy")))
            for row in self.per_class
        ]
        return [
            Table(title, ("metric", "value"), rows),
            Table("classes", ("class", "IoU", "right pixels"), cells),
        ]


def count_pixels(pairs: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> Tensor:
    """How many pixels of each class (row) were predicted as each class (column), K K, from masks and
    predictions."""
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for mask, predicted in pairs:
        counts += multiclass_confusion_matrix(
            predicted, mask.long(), num_classes, ignore_index=IGNORED, validate_args=False
        )
    return counts


def mean_iou(counts: Tensor) -> float:
    """Mean intersection over union in percent, of the classes that occur in masks or predictions."""
    intersection, union = _overlaps(counts)
    occurs = union > 0
    return 100 * float((intersection[occurs] / union[occurs]).mean()) if occurs.any() else 0.0


def pixel_accuracy(counts: Tensor) -> float:
    """Share of right pixels in percent."""
    return 100 * int(counts.diag().sum()) / max(1, int(counts.sum()))


def per_class(counts: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Rows by class."""
    intersection, union = (values.tolist() for values in _overlaps(counts))
    pixels = counts.sum(1).tolist()
    return [
        {
            "class": name,
            "iou": 100 * intersection[i] / union[i] if union[i] else None,
            "accuracy": 100 * intersection[i] / pixels[i] if pixels[i] else None,
            "pixels": pixels[i],
        }
        for i, name in enumerate(classes)
    ]


def _overlaps(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of masks and predictions, by class."""
    intersection = counts.diag()
    return intersection, counts.sum(0) + counts.sum(1) - intersection
