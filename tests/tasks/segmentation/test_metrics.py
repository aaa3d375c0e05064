"""Mean IoU and its interval."""

from __future__ import annotations

import pytest
import torch

from atconv.tasks.common.intervals import wilson_interval
from atconv.tasks.segmentation.metrics import intervals, mean_iou


def test_mean_iou_counts_classes_that_occur() -> None:
    counts = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    assert mean_iou(counts) == pytest.approx(100 * (6 / 9 + 3 / 6) / 2)
    assert mean_iou(torch.zeros(2, 2)) == 0


def test_intervals_count_images_and_not_pixels() -> None:
    right, wrong = torch.tensor([[1, 0], [1, 0], [1, 0]]), torch.tensor([[0, 0], [1, 1], [1, 0]])
    images = 150 * [right] + 50 * [wrong]
    found = intervals(images)
    assert found == intervals(images)
    assert found == intervals([100 * image for image in images])
    low, high = wilson_interval(150, 200)
    assert found["pixel_accuracy_interval"] == pytest.approx((low, high), abs=1)
    assert found["miou_interval"] == pytest.approx((low / 2, high / 2), abs=0.5)
