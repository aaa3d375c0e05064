"""A segmenter that is opened from its run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from atconv.tasks import load
from atconv.tasks.segmentation.data import SegmentationTransform
from support.tiny import atconv
from support.tiny_dense import segment, segmentation_run, shared_data


@pytest.mark.plots
def test_segmentation_does_not_depend_on_batches() -> None:
    predictor = load(segmentation_run())
    one = predictor.evaluate(batch_size=1)
    two = predictor.evaluate(str(shared_data()), split="val", batch_size=3)
    trained = json.loads((segmentation_run() / "metrics.json").read_text())
    assert one.miou == pytest.approx(two.miou, abs=0.02)
    assert one.miou == pytest.approx(trained["miou"], abs=0.02)
    low, high = one.miou_interval
    assert 0 < low < one.miou < high < 100
    assert [row["class"] for row in one.per_class] == ["ground", "dark", "bright"]


def test_flip_tta_sees_an_image_and_its_mirror_image_alike() -> None:
    predictor = load(segmentation_run())
    predictor.transform = SegmentationTransform(1, 64, None, None)  # nothing is padded
    x, size = torch.randn(2, 1, 64, 96), (64, 96)
    for flip_tta in (True, False):
        mirrored = predictor.classify(x.flip(3), size, flip_tta)
        assert torch.equal(mirrored, predictor.classify(x, size, flip_tta).flip(2)) == flip_tta


def test_flip_tta_is_chosen_shown_and_recorded(tmp_path: Path) -> None:
    ended = atconv("segment", "evaluate", segmentation_run(), shared_data(), "--flip-tta")
    assert ended.code == 0, ended.err
    assert any("flip TTA" in line and "yes" in line for line in ended.out.splitlines())
    evaluated = json.loads((segmentation_run() / "evaluation" / "data-val" / "metrics.json").read_text())
    trained = json.loads((segmentation_run() / "metrics.json").read_text())
    assert (evaluated["flip_tta"], trained["flip_tta"]) == (True, False)
    run = segment(tmp_path / "run", epochs=1, flip_tta=True)
    assert load(run).flip_tta
    assert json.loads((run / "metrics.json").read_text())["flip_tta"]
    content = json.loads((run / "config.json").read_text())
    del content["_atconv"]["flip_tta"]
    (run / "config.json").write_text(json.dumps(content))
    assert not load(run).flip_tta  # a run from before the option opens too
