"""How an exported detector is compared with `predict`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atconv import load
from atconv.tasks.detection.export import DetectionExporter, _compare
from support.tiny_dense import detection_run


def test_a_file_that_detects_something_else_is_rejected() -> None:
    exporter = DetectionExporter(load(detection_run()))
    images = exporter.images(None, None, 2)
    assert len(images) == 2

    def changed(**changes: float) -> Any:
        def call(images: torch.Tensor) -> Any:
            boxes, scores, labels = exporter.graph(images)
            keep = slice(int(changes.get("lost", 0)), None)
            shifted, scored = boxes + changes.get("box", 0), scores + changes.get("score", 0)
            return shifted[keep], scored[keep], labels[keep]

        return call

    with torch.inference_mode():
        assert max(exporter.agreement(changed(), images).values()) < 1e-4
        for changes in ({"box": 0.2}, {"score": 0.01}, {"lost": 1}):
            with pytest.raises(ValueError, match=r"objects .* are missing or new"):
                exporter.agreement(changed(**changes), images)


def test_rounding_may_change_what_it_changes_of_the_model_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = DetectionExporter(load(detection_run()))
    images = exporter.images(None, None, 2)
    inputs = exporter.inputs(1, 64, 80)

    def without(lost: int) -> Any:
        return lambda images: tuple(each[lost:] for each in exporter.graph(images))

    with torch.inference_mode():
        assert exporter._own_lost(*inputs) == 0
        assert exporter.error(without(1), inputs) == float("inf")
        monkeypatch.setattr(exporter, "_own_lost", lambda pixels: 1)
        assert exporter.error(without(1), inputs) == 0
        assert exporter.error(without(3), inputs) == float("inf")
        assert 2 in exporter.agreement(without(1), images).values()
        assert "2 are missing or new, and rounding alone changes 2:" in caplog.text
        with pytest.raises(ValueError, match=r"6 are missing or new, and rounding alone changes 2\. Train"):
            exporter.agreement(without(3), images)


def test_nothing_detected_is_nothing_compared(caplog: pytest.LogCaptureFixture) -> None:
    predictor = load(detection_run())
    predictor.model.roi_heads.score_thresh = 1.0
    exporter = DetectionExporter(predictor)
    images = exporter.images(None, None, 2)
    with torch.inference_mode():
        assert exporter.agreement(exporter.graph, images) == {}
        assert "nothing is detected in 2 images, so nothing is verified" in caplog.text
        exporter.graph.detector.roi_heads.score_thresh = 0.0
        with pytest.raises(ValueError, match=r"of 0 objects .* are missing or new"):
            exporter.agreement(exporter.graph, images)


def test_objects_are_matched_whatever_their_order() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [20, 20, 40, 40.5]])
    scores, labels = torch.tensor([0.9, 0.8, 0.8]), torch.tensor([0, 1, 1])
    order = [2, 0, 1]
    assert _compare((boxes[order], scores[order], labels[order]), (boxes, scores, labels))[:3] == (0, 0, 0)
    lost = _compare((boxes[:1], scores[:1], 1 - labels[:1]), (boxes[:1], scores[:1], labels[:1]))
    assert lost.lost == 2
