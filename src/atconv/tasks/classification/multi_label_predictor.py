"""A trained classifier of several labels an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atconv.data.splits import Split
from atconv.data.unreadable import list_skipped
from atconv.engine.reading import read_json
from atconv.engine.run import Run
from atconv.io import write_json, write_rows
from atconv.tasks.classification import TIMM_USAGE
from atconv.tasks.classification.classifier import Classification, ClassifierPredictor
from atconv.tasks.classification.multi_label_metrics import (
    MultiLabelMetrics,
    choose_thresholds,
    compute_multi_label_metrics,
)

__all__ = ["MultiLabelClassification", "MultiLabelPredictor"]

_TIMM_USAGE = (
    "import json\nfrom huggingface_hub import hf_hub_download\n"
    + TIMM_USAGE
    + """probabilities = model(inputs).sigmoid()[0].tolist()
classes = model.pretrained_cfg["label_names"]
thresholds = json.load(open(hf_hub_download("{name}", "config.json")))["thresholds"]
print([(c, p) for c, p, t in zip(classes, probabilities, thresholds) if p >= t])"""
)


@dataclass(frozen=True, kw_only=True)
class MultiLabelClassification(Classification):
    """The classes of one image above their thresholds, the most probable first; there may be none."""

    scores: dict[str, float] = field(default_factory=dict)
    """probability of every class"""

    def columns(self) -> Sequence[str]:
        return ["image", "labels"]

    def rows(self) -> list[Sequence[str]]:
        pairs = zip(self.classes, self.probabilities, strict=True)
        return [[self.image, ", ".join(f"{name} {100 * share:.1f} %" for name, share in pairs) or "none"]]

    def csv_rows(self) -> list[Sequence[Any]]:
        return super().csv_rows() or [[self.image, "", "", ""]]


class MultiLabelPredictor(ClassifierPredictor[MultiLabelMetrics]):
    """A trained classifier of several labels an image. `predictor(images)` gives the classes whose
    probability reaches their threshold."""

    multi_label = True
    result_class, metrics_class = MultiLabelClassification, MultiLabelMetrics
    right_name = "all labels right"

    def __init__(self, run: Run, *args: Any) -> None:
        super().__init__(run, *args)
        known = read_json(run.model_config, {}).get("thresholds")
        self.thresholds: list[float] = known or [0.5] * len(self.classes)
        """of each class, chosen on validation images after training; ½ before"""

    def activation(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def result(
        self, name: str, shares: Tensor, top: int | None, threshold: float | None
    ) -> MultiLabelClassification:
        minimum = torch.tensor(self.thresholds if threshold is None else [threshold] * len(self.classes))
        order = [i for i in shares.argsort(descending=True).tolist() if shares[i] >= minimum[i]][:top]
        return MultiLabelClassification(
            image=name,
            classes=[self.classes[i] for i in order],
            probabilities=[float(shares[i]) for i in order],
            scores=dict(zip(self.classes, shares.tolist(), strict=True)),
        )

    def right(self, probabilities: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.bool_]:
        return ((probabilities >= np.array(self.thresholds)) == (labels > 0)).all(1)

    def describe_outputs(self) -> dict[str, Any]:
        return {"activation": "sigmoid", "thresholds": self.thresholds}

    def publication(self, about: Any) -> Any:
        _, *others = about.libraries
        limits = ("An image gets each class whose probability reaches its threshold: several, or none.",)
        return replace(about, libraries=(_TIMM_USAGE, *others), limits=limits)

    def measure(
        self, probabilities: NDArray[np.float32], labels: NDArray[Any], speed: float, split: str, source: Any
    ) -> MultiLabelMetrics:
        return compute_multi_label_metrics(
            probabilities, labels, self.classes, self.thresholds, speed, split, source
        )

    def choose_thresholds(self, images: Split, batch_size: int, workers: int) -> None:
        """Choose the threshold of each class for the highest F1 on images, and keep them in config.json."""
        metrics: Any = self.evaluate_on(images, "val", batch_size, workers)
        self.thresholds = choose_thresholds(metrics.probabilities, metrics.labels)
        content = json.loads(self.run.model_config.read_text(encoding="utf-8"))
        write_json(self.run.model_config, content | {"thresholds": self.thresholds})

    def save_results(self, metrics: MultiLabelMetrics, folder: Path) -> None:
        """Write predictions.csv, classes.png and mistakes.png; and skipped.csv where files were left out."""
        from atconv.tasks.classification import plots

        list_skipped(metrics.skipped, folder, self.run.path)
        predicted, shares = metrics.predicted, metrics.probabilities
        rows = [
            {
                "image": metrics.source.name(i),
                "labels": self._names(metrics.labels[i]),
                "predicted": self._names(predicted[i]),
                "probabilities": "; ".join(f"{share:.4f}" for share in shares[i][predicted[i]]),
            }
            for i in range(metrics.images)
        ]
        write_rows(folder / "predictions.csv", rows)
        plots.plot_class_scores(metrics, folder / "classes.png")
        plots.plot_multi_label_mistakes(metrics, self.transform.prepare.mode, folder / "mistakes.png")

    def _names(self, flags: NDArray[Any]) -> str:
        return "; ".join(self.classes[i] for i in np.flatnonzero(flags))
