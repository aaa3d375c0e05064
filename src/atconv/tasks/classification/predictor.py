"""A trained classifier of one class an image: what it says of images, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from atconv.data.unreadable import list_skipped
from atconv.engine.reading import read_json
from atconv.engine.run import Run
from atconv.io import write_rows
from atconv.tasks.classification.classifier import Classification, ClassifierPredictor
from atconv.tasks.classification.config import MULTI_LABEL
from atconv.tasks.classification.metrics import ClassificationMetrics, compute_metrics
from atconv.tasks.classification.multi_label_predictor import MultiLabelPredictor

__all__ = ["ClassificationPredictor"]

_TOP = 5


class ClassificationPredictor(ClassifierPredictor[ClassificationMetrics]):
    """A trained classifier. `predictor(images, top=5)`; the model takes B C H W of `transform`'s results."""

    result_class, metrics_class = Classification, ClassificationMetrics
    right_name = "top-1"

    @classmethod
    def open(cls, run: Run) -> Any:
        """The best model of a classification run; of one of several labels an image, a `MultiLabelPredictor`.

        Raises:
            ValueError: no epoch of it has finished, or its weights are damaged.
        """
        content = read_json(run.model_config, {}) if run.model_config.is_file() else {}
        several = content.get("problem_type") == MULTI_LABEL
        return MultiLabelPredictor.open(run) if several else super().open(run)

    def activation(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def result(self, name: str, shares: Tensor, top: int | None, threshold: float | None) -> Classification:
        if threshold is not None:
            raise ValueError(
                f"threshold is for several labels an image, and {self.run.path} gives one class each"
            )
        values, best = shares.topk(min(top or _TOP, len(self.classes)))
        classes = [self.classes[i] for i in best.tolist()]
        return Classification(image=name, classes=classes, probabilities=values.tolist())

    def right(self, probabilities: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.bool_]:
        return probabilities.argmax(1) == labels

    def describe_outputs(self) -> dict[str, Any]:
        return {"activation": "softmax"}

    def measure(
        self, probabilities: NDArray[np.float32], labels: NDArray[Any], speed: float, split: str, source: Any
    ) -> ClassificationMetrics:
        return compute_metrics(probabilities, labels, self.classes, speed, split, source)

    def save_results(self, metrics: ClassificationMetrics, folder: Path) -> None:
        """Write predictions.csv, confusion.png and mistakes.png; skipped.csv of files that are left out."""
        from atconv.tasks.classification import plots

        list_skipped(metrics.skipped, folder, self.run.path)
        classes, predicted = self.classes, metrics.probabilities.argmax(1)
        rows = [
            {
                "image": metrics.source.name(i),
                "label": classes[label],
                "predicted": classes[predicted[i]],
                "probability": f"{metrics.probabilities[i, predicted[i]]:.4f}",
            }
            for i, label in enumerate(metrics.labels)
        ]
        write_rows(folder / "predictions.csv", rows)
        plots.plot_confusion_matrix(metrics, folder / "confusion.png")
        worst = worst_mistakes(metrics.probabilities, metrics.labels).tolist()
        plots.plot_mistakes(metrics, worst, self.transform.prepare.mode, folder / "mistakes.png")


def worst_mistakes(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], count: int = 20
) -> NDArray[np.int64]:
    """Positions of the wrong predictions made with the greatest confidence, most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")][:count]
