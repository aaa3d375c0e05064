"""How good a classifier is: accuracy with its interval, calibration, classes, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atconv.data.unreadable import SkippedFile
from atconv.engine.options import Percent
from atconv.engine.predictor import Metrics
from atconv.engine.tables import Table, interval_text, over_classes, percent_text
from atconv.tasks.classification.augmentation import Tta
from atconv.tasks.common.intervals import wilson_interval
from atconv.tasks.common.metric_names import metric_name

__all__ = [
    "ClassificationMetrics",
    "ClassifierMetrics",
    "compute_metrics",
    "expected_calibration_error",
    "rows_by_class",
]

_MAX_CLASSES_SHOWN = 30


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierMetrics(Metrics):
    """What metrics of classifiers share, of one class an image and of several."""

    hidden = ("probabilities", "labels", "skipped", "source", "classes", "thresholds")
    counts = ("images",)

    classes: list[str]
    probabilities: NDArray[np.float32]
    """images × classes"""
    tta: Tta = "none"
    """test-time augmentation"""
    skipped: list[SkippedFile] = field(default_factory=list, repr=False)
    """files that are unreadable and left out"""
    source: Any = field(default=None, repr=False)
    """where the images are read from, by position: `read(position, mode)` and `name(position)`"""

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"tta": self.tta}

    def mean_rows(self, means: Mapping[str, float], predicted: NDArray[np.int64]) -> list[tuple[str, str]]:
        """A mean over the classes that have images, and macro F1, which is over those predicted too
        (`predicted`, in any order): each says which classes are left out."""
        absent = np.array([row["images"] == 0 for row in self.per_class])
        left_out = (absent, absent & ~np.isin(np.arange(len(absent)), predicted))
        return [
            (name, f"{value:.2f} %" + over_classes(len(which), list(compress(self.classes, which))))
            for (name, value), which in zip(means.items(), left_out, strict=True)
        ]

    def last_rows(self) -> list[tuple[str, str]]:
        tta = [("test-time augmentation", self.tta)] if self.tta != "none" else []
        return super().last_rows() + tta

    def class_table(self, rank: str, columns: Sequence[str]) -> Table:
        """Metrics by class, of many classes only those with the lowest of the column `rank`."""
        many = len(self.classes) > _MAX_CLASSES_SHOWN
        rows = sorted(self.per_class, key=lambda row: row[rank] or 0.0) if many else self.per_class
        cells = [
            (row["class"], str(row["images"]), *(_cell(name, row[name]) for name in columns))
            for row in rows[:_MAX_CLASSES_SHOWN]
        ]
        lowest = f"the {_MAX_CLASSES_SHOWN} classes with the lowest {metric_name(rank)}"
        headers = ("class", "images", *map(metric_name, columns))
        return Table(lowest if many else "classes", headers, cells)


def _cell(name: str, value: float | None) -> str:
    return f"{value:.3f}" if name == "threshold" else percent_text(value)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationMetrics(ClassifierMetrics):
    """Metrics of one classifier on one split. Percentages are 0…100."""

    top1: Percent
    top1_interval: tuple[Percent, Percent]
    """95 % Wilson interval of top1"""
    top5: Percent | None
    """None where there are five classes or fewer"""
    top5_interval: tuple[Percent, Percent] | None
    balanced_accuracy: Percent
    """mean recall of the classes that have images: a class counts as much as any other"""
    macro_f1: Percent
    """mean F1 of the classes that have images or were predicted"""
    calibration_error: Percent
    """expected calibration error over 15 bins of confidence"""
    labels: NDArray[np.int64]

    def class_means(self) -> list[tuple[str, str]]:
        """Balanced accuracy and macro F1, as rows of a table."""
        means = {"balanced accuracy": self.balanced_accuracy, "macro F1": self.macro_f1}
        return self.mean_rows(means, self.probabilities.argmax(1))

    def tables(self, title: str) -> list[Table]:
        """Accuracy; and metrics by class, of many classes only those with the lowest recall."""
        rows = [("top-1  [95 % interval]", interval_text(self.top1, self.top1_interval))]
        if self.top5 is not None and self.top5_interval is not None:
            rows.append(("top-5  [95 % interval]", interval_text(self.top5, self.top5_interval)))
        rows += [
            *self.class_means(),
            ("calibration error", f"{self.calibration_error:.2f} %"),
            *self.last_rows(),
        ]
        by_class = self.class_table("recall", ("precision", "recall", "f1"))
        return [Table(title, ("metric", "value"), rows), by_class]


def compute_metrics(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    images_per_second: float,
    split: str = "",
    source: Any = None,
) -> ClassificationMetrics:
    """All metrics from probabilities (images × classes) and labels."""
    count = len(labels)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = order == labels[:, None]
    top1 = int(hits[:, 0].sum())
    top5 = int(hits[:, :5].any(1).sum()) if len(classes) > 5 else None
    per_class = rows_by_class(order[:, 0], labels, classes)
    seen = np.union1d(order[:, 0], labels)
    return ClassificationMetrics(
        split=split,
        images=count,
        top1=100 * top1 / count,
        top1_interval=wilson_interval(top1, count),
        top5=None if top5 is None else 100 * top5 / count,
        top5_interval=None if top5 is None else wilson_interval(top5, count),
        balanced_accuracy=float(np.mean([row["recall"] for row in per_class if row["images"]])),
        macro_f1=float(np.mean([per_class[i]["f1"] for i in seen])),
        calibration_error=100 * expected_calibration_error(probabilities, labels),
        images_per_second=images_per_second,
        per_class=per_class,
        classes=list(classes),
        probabilities=probabilities,
        labels=labels,
        source=source,
    )


def expected_calibration_error(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, 0…1 (arXiv 1706.04599)."""
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    weight = np.bincount(which, minlength=bins)
    gaps = np.abs(
        np.bincount(which, weights=confidence, minlength=bins)
        - np.bincount(which, weights=correct, minlength=bins)
    )
    return float(gaps.sum() / weight.sum())


def rows_by_class(
    predicted: NDArray[Any], labels: NDArray[Any], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Images, precision, recall and F1 of each class, from class indices or images × classes of 0 and 1."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=0.0
    )
    precision, recall, f1, images = columns
    return [
        {
            "class": name,
            "images": int(images[i]),
            "precision": 100 * float(precision[i]),
            "recall": 100 * float(recall[i]),
            "f1": 100 * float(f1[i]),
        }
        for i, name in enumerate(classes)
    ]
