"""How good a segmenter is: intersection over union of every class, their mean, the share of right pixels.

torchmetrics counts the pixels. What follows from the counts is computed here: torchmetrics' MeanIoU averages
over images, and gives 0 for a class that occurs nowhere, which has no IoU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from atconv.data.masks.split import IGNORED
from atconv.engine.options import Percent
from atconv.engine.tables import Table, interval_text, over_classes, percent_text
from atconv.tasks.common.annotated_predictor import AnnotatedMetrics

__all__ = [
    "RESAMPLES",
    "SegmentationMetrics",
    "count_pixels",
    "intervals",
    "mean_iou",
    "per_class",
    "pixel_accuracy",
]

RESAMPLES = 1000
"""how often images are resampled for the intervals"""


@dataclass(frozen=True, kw_only=True)
class SegmentationMetrics(AnnotatedMetrics):
    """Metrics of one segmenter on one split, in percent. By class: IoU (None where it does not occur),
    accuracy (share of its pixels), pixels."""

    counts = ("pixels",)

    miou: Percent
    """mean over the classes that occur, in masks or predictions"""
    miou_interval: tuple[Percent, Percent]
    """95 %, by bootstrap over the images: percentiles of `RESAMPLES` resamples"""
    pixel_accuracy: Percent
    pixel_accuracy_interval: tuple[Percent, Percent]
    flip_tta: bool
    """whether predictions for each image and its mirror image were averaged"""

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"flip_tta": self.flip_tta}

    def tables(self, title: str) -> list[Table]:
        absent = [row["class"] for row in self.per_class if row["iou"] is None]
        miou = interval_text(self.miou, self.miou_interval) + over_classes(len(self.per_class), absent)
        right = interval_text(self.pixel_accuracy, self.pixel_accuracy_interval)
        rows = [
            ("mean IoU  [95 % interval]", miou),
            ("right pixels  [95 % interval]", right),
            *self.last_rows(),
            ("flip TTA", "yes" if self.flip_tta else "no"),
        ]
        cells = [
            (row["class"], percent_text(row["iou"]), percent_text(row["accuracy"])) for row in self.per_class
        ]
        return [
            Table(title, ("metric", "value"), rows),
            Table("classes", ("class", "IoU", "right pixels"), cells),
        ]


def count_pixels(pairs: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> tuple[Tensor, list[Tensor]]:
    """How many pixels of each class (row) were predicted as each class (column), K K, from masks and
    predictions; and for each image intersection, union and pixels by class, 3 K."""
    counts, images = torch.zeros(num_classes, num_classes, dtype=torch.int64), []
    for mask, predicted in pairs:
        image = multiclass_confusion_matrix(
            predicted, mask.long(), num_classes, ignore_index=IGNORED, validate_args=False
        )
        counts += image
        images.append(torch.stack([*_overlaps(image), image.sum(1)]))
    return counts, images


def mean_iou(counts: Tensor) -> float:
    """Mean intersection over union in percent, of the classes that occur in masks or predictions."""
    return float(_mean_ratio(*_overlaps(counts)))


def intervals(images: Sequence[Tensor]) -> dict[str, tuple[float, float]]:
    """95 % intervals of the metrics, in percent, from what `count_pixels` says of each image."""
    rng, number, values = np.random.default_rng(0), len(images), []
    table = torch.stack(list(images)).double().flatten(1)
    for _ in range(RESAMPLES // 100):  # at a time, so that there is memory for many images
        times = torch.from_numpy(rng.multinomial(number, np.full(number, 1 / number), 100)).double()
        intersection, union, pixels = (times @ table).chunk(3, dim=1)
        right = 100 * intersection.sum(1) / pixels.sum(1).clamp(min=1)
        values.append(torch.stack([_mean_ratio(intersection, union), right], dim=1))
    low, high = np.percentile(torch.cat(values), [2.5, 97.5], axis=0).tolist()
    names = ("miou_interval", "pixel_accuracy_interval")
    return dict(zip(names, zip(low, high, strict=True), strict=True))


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


def _mean_ratio(intersection: Tensor, union: Tensor) -> Tensor:
    """Mean IoU in percent over the last axis; 0 where no class occurs."""
    return 100 * (intersection / union).nanmean(-1).nan_to_num()
