"""Which parameters weight decay touches."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import nn

from atconv.engine.config import TrainConfig
from atconv.engine.optimizer import make_optimizer
from atconv.models import detector, segmenter
from support.tiny_dense import BACKBONE

MIXED: dict[str, Any] = BACKBONE | {
    "token_mixer": ["window_attention", "neighborhood_attention", "atconv", "attention"]
}


def decays(model: nn.Module, layer_decay: float | None = None) -> dict[str, float]:
    """Weight decay of each parameter by name."""
    config = TrainConfig(weight_decay=0.05, layer_decay=layer_decay, device="cpu")
    groups = make_optimizer(model, config, lr=1e-3).param_groups
    by_id = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def dense_models() -> dict[str, nn.Module]:
    return {
        "detector": detector("attnet_xxs", 2, "retinanet", backbone_args=MIXED, channels=8),
        "segmenter": segmenter("attnet_xxs", 2, backbone_args=MIXED),
    }


@pytest.mark.parametrize("layer_decay", [None, 0.9])
@pytest.mark.parametrize("task", ["detector", "segmenter"])
def test_the_backbone_of_a_dense_model_keeps_its_exemptions(task: str, layer_decay: float | None) -> None:
    model = dense_models()[task]
    decay = decays(model, layer_decay)
    exempt = {name for name in decay if name.endswith(("position_bias", "position_bias_table", "alpha"))}
    assert {name.rsplit(".", 1)[1] for name in exempt} == {
        "position_bias", "relative_position_bias_table", "alpha"
    }  # fmt: skip
    assert {decay[name] for name in exempt} == {0.0}
    weights = {n for n, p in model.named_parameters() if n in decay and p.ndim > 1} - exempt
    assert {decay[name] for name in weights} == {0.05}


@pytest.mark.parametrize("layer_decay", [None, 0.9])
def test_a_classifier_has_timms_groups(layer_decay: float | None) -> None:
    model = timm.create_model("attnet_xxs", **MIXED)
    config = TrainConfig(weight_decay=0.05, layer_decay=layer_decay, device="cpu")
    groups = make_optimizer(model, config, lr=1e-3).param_groups
    expected = timm.optim.create_optimizer_v2(
        model, opt=config.optimizer, lr=1e-3, weight_decay=0.05, layer_decay=layer_decay
    ).param_groups
    assert [[id(p) for p in g["params"]] for g in groups] == [[id(p) for p in g["params"]] for g in expected]
    assert [g["weight_decay"] for g in groups] == [g["weight_decay"] for g in expected]


def test_a_model_without_exemptions_has_timms_groups() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    expected = timm.optim.param_groups_weight_decay(model, 0.05)
    groups = make_optimizer(model, TrainConfig(weight_decay=0.05, device="cpu"), lr=1e-3).param_groups
    assert [[id(p) for p in g["params"]] for g in groups] == [[id(p) for p in g["params"]] for g in expected]
    assert isinstance(groups[0]["params"][0], torch.Tensor)
