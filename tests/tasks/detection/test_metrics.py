"""Mean average precision of boxes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atconv.data.annotated import batches_of_equal_size
from atconv.data.boxes.split import BoxSplit
from atconv.data.formats import open_boxes
from atconv.tasks.detection.data import DetectionTransform, EvalExamples, collate
from atconv.tasks.detection.metrics import mean_average_precision
from support.tiny_dense import shared_data


class Answers(nn.Module):
    """A detector that gives these answers, one image after the other."""

    def __init__(self, answers: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.weight, self.answers = nn.Parameter(torch.zeros(1)), answers

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.answers.pop(0) for _ in images]


def metrics_of(split: BoxSplit, change: Any) -> dict[str, float]:
    answers = []
    for boxes in (
        split.boxes(i) for batch in batches_of_equal_size(split, range(len(split)), 2) for i in batch
    ):
        detections = {
            "boxes": torch.tensor([box.corners for box in boxes]),
            "labels": torch.tensor([box.label for box in boxes]),
            "scores": torch.full((len(boxes),), 0.9),
        }
        change(detections)
        answers.append(detections)
    batches = batches_of_equal_size(split, range(len(split)), 2)
    examples = EvalExamples(split, DetectionTransform(1), False)
    loaded = [collate([examples(i) for i in batch]) for batch in batches]
    return mean_average_precision(Answers(answers), loaded, False)


def test_mean_average_precision() -> None:
    split = open_boxes(shared_data(), False)["val"]

    def narrow(detections: dict[str, Tensor]) -> None:
        detections["boxes"][:, 2] -= 0.28 * (detections["boxes"][:, 2] - detections["boxes"][:, 0])

    def miss_one_class(detections: dict[str, Tensor]) -> None:
        selected = detections["labels"] == 1
        detections.update({name: value[selected] for name, value in detections.items()})

    def swap(detections: dict[str, Tensor]) -> None:
        detections["labels"] = 3 - detections["labels"]

    assert metrics_of(split, lambda detections: None) == pytest.approx({"map": 100, "map_50": 100})
    # An overlap of 0.72 passes the thresholds 0.5, 0.55 … 0.7: five of ten.
    assert metrics_of(split, narrow) == pytest.approx({"map": 50, "map_50": 100})
    assert metrics_of(split, miss_one_class) == pytest.approx({"map": 50, "map_50": 50})
    assert metrics_of(split, swap)["map_50"] < 20
