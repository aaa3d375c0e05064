"""Detected objects as they are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from atconv.tasks.common.drawing import class_colors
from atconv.tasks.detection.plots import draw_detections
from support.tiny import atconv
from support.tiny_dense import detection_run, shared_data


def test_detected_objects_are_drawn_and_printed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    images = shared_data() / "images" / "val"
    ended = atconv("detect", "predict", detection_run(), images, "--threshold=0.01", "--json", f"--out={out}")
    assert ended.code == 0, ended.err
    results = json.loads(ended.out)
    assert len(results) == 4
    for result in results:
        assert result["scores"] == sorted(result["scores"], reverse=True)
        assert all(score >= 0.01 for score in result["scores"])
        assert set(result["classes"]) <= {"bright", "dark"}
        assert max(Image.open(result["plot"]).size) >= 480
        assert result["masks"] is None


def test_a_drawn_box_lies_where_it_was_detected() -> None:
    detections = {
        "boxes": torch.tensor([[10.0, 20.0, 30.0, 36.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.9]),
    }
    drawn = draw_detections(torch.zeros(1, 48, 64), detections, ["a", "b"])
    factor = drawn.shape[2] // 64
    inside = (drawn.sum(0) > 0).nonzero()
    assert inside.min(0).values.tolist() == [20 * factor, 10 * factor]
    assert inside.max(0).values[1] <= 30 * factor + 60
    assert not draw_detections(torch.zeros(1, 48, 64), detections, ["a", "b"], threshold=0.95).any()


def test_lines_are_wider_on_large_images() -> None:
    def width(size: int) -> int:
        box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * size
        drawn = draw_detections(
            torch.zeros(1, size, size), {"boxes": box, "labels": torch.tensor([1])}, ["a"]
        )
        return int((drawn.sum(0)[size // 2] > 0).sum())

    assert 3 * width(960) <= width(3840)


def test_masks_that_overlap_keep_their_colors() -> None:
    masks = torch.zeros(2, 480, 480)
    masks[0, :, :300] = masks[1, :, 180:] = 1
    objects = {"boxes": torch.tensor([[0.0, 0, 1, 1]]).repeat(2, 1), "labels": torch.tensor([1, 2])}
    drawn = draw_detections(torch.ones(3, 480, 480), {**objects, "masks": masks}, ["a", "b"])
    first, both, second = (drawn[:, 400, column].tolist() for column in (90, 240, 400))
    assert len({tuple(first), tuple(both), tuple(second)}) == 3
    upper, lower = class_colors(2)
    expected = [0.45 * a + 0.55 * (0.45 * b + 0.55 * 255) for a, b in zip(upper, lower, strict=True)]
    assert both == pytest.approx(expected, abs=2)
