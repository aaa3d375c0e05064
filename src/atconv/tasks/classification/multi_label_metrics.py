"""How good a classifier of several labels an image is, and from which probability on it gives each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atconv.engine.options import Percent
from atconv.engine.tables import Table
from atconv.tasks.classification.metrics import ClassifierMetrics, rows_by_class

__all__ = [
    "MultiLabelMetrics",
    "choose_thresholds",
    "compute_multi_label_metrics",
    "mean_average_precision",
    "micro_f1",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiLabelMetrics(ClassifierMetrics):
    """Metrics of one classifier of several labels an image on one split. Percentages are 0…100."""

    map: Percent
    """mean average precision of the classes that have images"""
    macro_f1: Percent
    """mean F1 of the classes that have images or were predicted"""
    micro_f1: Percent
    """F1 over all labels of all images"""
    exact_match: Percent
    """images with all labels right, and no other"""
    thresholds: list[float]
    """probability from which on each class is predicted"""
    labels: NDArray[np.uint8]
    """images × classes of 0 and 1"""

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """images × classes, at the thresholds"""
        return self.probabilities >= np.array(self.thresholds)

    def tables(self, title: str) -> list[Table]:
        """Scores; and metrics by class, of many classes only those with the lowest average precision."""
        rows = [
            *self.mean_rows({"mAP": self.map, "macro F1": self.macro_f1}, np.nonzero(self.predicted)[1]),
            ("micro F1", f"{self.micro_f1:.2f} %"),
            ("all labels right", f"{self.exact_match:.2f} %"),
            *self.last_rows(),
        ]
        by_class = self.class_table("ap", ("ap", "precision", "recall", "f1", "threshold"))
        return [Table(title, ("metric", "value"), rows), by_class]


def compute_multi_label_metrics(
    probabilities: NDArray[np.float32],
    labels: NDArray[Any],
    classes: Sequence[str],
    thresholds: Sequence[float],
    images_per_second: float,
    split: str = "",
    source: Any = None,
) -> MultiLabelMetrics:
    """All metrics from probabilities and labels, both images × classes."""
    labels, predicted = labels > 0, probabilities >= np.array(thresholds)
    columns = zip(average_precisions(probabilities, labels), thresholds, strict=True)
    per_class = [
        {
            "class": row["class"],
            "images": row["images"],
            "ap": None if ap is None else 100 * ap,
            **row,
            "threshold": float(threshold),
        }
        for row, (ap, threshold) in zip(rows_by_class(predicted, labels, classes), columns, strict=True)
    ]
    seen = np.flatnonzero(labels.any(0) | predicted.any(0))
    return MultiLabelMetrics(
        split=split,
        images=len(labels),
        map=100 * mean_average_precision(probabilities, labels),
        macro_f1=float(np.mean([per_class[i]["f1"] for i in seen])) if len(seen) else 0.0,
        micro_f1=100 * float(micro_f1(predicted, labels)),
        exact_match=100 * float((predicted == labels).all(1).mean()),
        images_per_second=images_per_second,
        per_class=per_class,
        classes=list(classes),
        thresholds=list(thresholds),
        probabilities=probabilities,
        labels=labels.astype(np.uint8),
        source=source,
    )


def average_precisions(scores: NDArray[Any], labels: NDArray[Any]) -> list[float | None]:
    """Average precision of each class, 0…1; None where no image is of it."""
    from sklearn.metrics import average_precision_score

    return [
        float(average_precision_score(own, score)) if own.any() else None
        for own, score in zip((labels > 0).T, scores.T, strict=True)
    ]


def mean_average_precision(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean of the average precisions of the classes that have images, 0…1; 0 where none has."""
    known = [value for value in average_precisions(scores, labels) if value is not None]
    return float(np.mean(known)) if known else 0.0


def micro_f1(predicted: Any, labels: Any) -> Any:
    """F1 over all labels of all images, 0…1, of boolean arrays or tensors; 1 where there is none to find and
    none was predicted."""
    hits, total = (predicted & labels).sum(), predicted.sum() + labels.sum()
    none = total == 0
    return (2 * hits + none) / (total + none)


def choose_thresholds(probabilities: NDArray[Any], labels: NDArray[Any]) -> list[float]:
    """For each class the probability from which on predicting it gives the highest F1, halfway to the next
    lower one among these images; ½ where none is of the class."""
    from sklearn.metrics import precision_recall_curve

    thresholds = []
    for own, scores in zip((labels > 0).T, probabilities.T.astype(np.float64), strict=True):
        if not own.any():
            thresholds.append(0.5)
            continue
        precision, recall, values = precision_recall_curve(own, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(f1[:-1].argmax())
        below = scores[scores < values[best]]
        thresholds.append(float((values[best] + (below.max() if len(below) else 0.0)) / 2))
    return thresholds
