"""Class weights of detectors against the formulas, written out by region and class."""

from __future__ import annotations

import copy
import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import roi_heads
from torchvision.models.detection._utils import Matcher

from atconv.models.detector_losses import weigh_classes
from atconv.models.detectors import ARCHITECTURES, DetectorArchitecture, detector
from support.tiny_dense import BACKBONE

WEIGHTS = torch.tensor([0.25, 3.0])
PARTS = {"faster_rcnn": "loss_classifier", "mask_rcnn": "loss_classifier", "retinanet": "classification"}


def tiny(architecture: DetectorArchitecture) -> Any:
    torch.manual_seed(0)
    return detector("attnet_xxs", 2, architecture, backbone_args=BACKBONE, channels=16, min_size=64)


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images, one with an object of each class, one without objects."""
    boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0], [20.0, 20.0, 60.0, 56.0]])
    full = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": torch.ones(2, 64, 64).byte()}
    empty = {name: value[:0] for name, value in full.items()}
    return [torch.rand(3, 64, 64) for _ in range(2)], [full, empty]


def losses(model: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)  # detectors sample regions
    result: dict[str, Tensor] = model.train()(*batch())
    return result


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equal_weights_change_nothing_and_others_only_the_classification(architecture: Any) -> None:
    model = tiny(architecture)
    plain, names = losses(model), list(model.state_dict())
    weigh_classes(model, torch.ones(2))
    assert all(torch.allclose(value, plain[name]) for name, value in losses(model).items())
    weigh_classes(model, WEIGHTS)
    weighted = losses(copy.deepcopy(model))  # as the moving average copies it
    changed = [name for name, value in weighted.items() if not torch.allclose(value, plain[name])]
    assert (changed, list(model.state_dict())) == ([PARTS[architecture]], names)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_leave_predictions_alone(architecture: Any) -> None:
    model, images = tiny(architecture).eval(), batch()[0]
    before = model(images)
    weigh_classes(model, WEIGHTS)
    assert all(torch.equal(a["scores"], b["scores"]) for a, b in zip(before, model(images), strict=True))


@pytest.mark.parametrize("architecture", ["faster_rcnn", "mask_rcnn"])
def test_two_stages_weigh_the_entropy_of_each_region_by_its_class(architecture: Any) -> None:
    model = tiny(architecture)
    weigh_classes(model, WEIGHTS)
    with mock.patch.object(roi_heads, "fastrcnn_loss", wraps=roi_heads.fastrcnn_loss) as called:
        loss = losses(model)["loss_classifier"].detach()
    logits, _, labels, _ = called.call_args.args
    weights, regions = [1.0, *WEIGHTS.tolist()], list(zip(logits, torch.cat(labels).tolist(), strict=True))
    assert {label for _, label in regions} == {0, 1, 2}
    expected = sum(-weights[label] * each.detach().log_softmax(0)[label] for each, label in regions) / len(
        regions
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_one_stage_weighs_the_focal_loss_of_each_anchor_by_its_class() -> None:
    model = tiny("retinanet")
    weigh_classes(model, WEIGHTS)
    head = type(model.head.classification_head)
    with mock.patch.object(head, "compute_loss", autospec=True, side_effect=head.compute_loss) as called:
        loss = losses(model)["classification"].detach()
    _, targets, outputs, matched = called.call_args.args
    weights, total, ignored = [1.0, *WEIGHTS.tolist()], 0.0, Matcher.BETWEEN_THRESHOLDS
    for target, logits, matches in zip(targets, outputs["cls_logits"], matched, strict=True):
        p, image = logits.detach().double().sigmoid(), 0.0
        for anchor, match in enumerate(matches.tolist()):
            label = int(target["labels"][match]) if match >= 0 else 0
            for name in range(3) if match != ignored else ():
                q = float(p[anchor, name])
                positive = label > 0 and label == name
                value = 0.25 * (1 - q) ** 2 * -math.log(q) if positive else 0.75 * q**2 * -math.log(1 - q)
                image += weights[label] * value
        total += image / max(1, int((matches >= 0).sum())) / len(targets)
    assert float(loss) == pytest.approx(total, rel=1e-4)
