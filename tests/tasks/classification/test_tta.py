"""Test-time augmentation of classifiers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import atconv as package
from atconv.data.sources.digits import DigitsSource
from atconv.tasks.classification.augmentation import test_time_views as views_of
from atconv.tasks.classification.predictor import ClassificationPredictor
from support.tiny import atconv, trained_run


class FlipSymmetric(nn.Module):
    """The mean over an image and its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return (self.model(images) + self.model(images.flip(3))) / 2


@pytest.fixture
def predictor() -> ClassificationPredictor:
    opened = package.load(trained_run())
    assert isinstance(opened, ClassificationPredictor)
    with torch.no_grad():
        opened.model.get_parameter("head.fc.weight").mul_(30)  # a run of two epochs is unsure of all
    return opened


def test_views_are_the_image_its_mirror_image_and_their_crops() -> None:
    images = torch.arange(100.0).reshape(1, 1, 10, 10)
    assert [len(list(views_of(images, tta))) for tta in ("none", "flip", "crops")] == [1, 2, 6]
    plain, mirrored, *crops = views_of(images, "crops")
    assert torch.equal(plain, images)
    assert torch.equal(mirrored, images.flip(3))
    assert all(crop.shape == images.shape for crop in crops)
    assert torch.equal(crops[3], crops[2].flip(3))
    # 80 % of ten pixels are those from the second to the ninth.
    assert (crops[2].min(), crops[2].max()) == (images[0, 0, 1, 1], images[0, 0, 8, 8])


def test_probabilities_are_the_mean_over_views(predictor: ClassificationPredictor) -> None:
    inputs = torch.randn(4, 1, 8, 8)
    with torch.inference_mode():
        alone = [predictor.model(view).softmax(1) for view in views_of(inputs, "crops")]
        together = predictor.probabilities(inputs, "crops")
        torch.testing.assert_close(together, sum(alone) / 6, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.sum(1), torch.ones(4))
        assert (together - alone[0]).abs().max() > 1e-3


def test_flipping_changes_nothing_for_a_symmetric_model(predictor: ClassificationPredictor) -> None:
    images = [DigitsSource().read(i, "L") for i in range(5)]
    plain, flipped = predictor.infer_all(images), predictor.infer_all(images, "flip")
    assert (plain - flipped).abs().max() > 1e-3
    predictor.model = FlipSymmetric(predictor.model).eval()
    torch.testing.assert_close(predictor.infer_all(images), predictor.infer_all(images, "flip"))


def test_commands_take_it_and_metrics_stand_apart(tmp_path: Path) -> None:
    DigitsSource().read(0, "L").save(tmp_path / "a.png")
    predictor = package.load(trained_run())
    expected = predictor([tmp_path / "a.png"], tta="flip")[0]
    ended = atconv("predict", trained_run(), tmp_path / "a.png", "--tta=flip", "--json")
    assert json.loads(ended.out)[0]["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    metrics = predictor.evaluate(tta="flip", workers=0)
    assert metrics.to_dict()["tta"] == metrics.settings()["tta"] == "flip"
    assert abs(metrics.probabilities - predictor.evaluate(workers=0).probabilities).max() > 1e-5
    assert atconv("predict", trained_run(), tmp_path / "a.png", "--tta=flop").code == 2
