"""Which layers mix tokens, and their outputs."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from atconv import ATConvTokens
from atconv.analysis.explanation import class_activation
from atconv.analysis.features import (
    as_map,
    collect_outputs,
    eval_mode,
    evenly_spaced,
    mixer_layers,
    stage_layers,
)
from atconv.analysis.rollout import collect_attention
from atconv.analysis.routing import collect_kernels
from atconv.mixers import MIXERS
from support.helpers import tiny_attnet


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_of_a_backbone_is_found_once(name: str) -> None:
    model = tiny_attnet(token_mixer=name)
    assert mixer_layers(model) == [f"stages.{i}.blocks.0.token_mixer" for i in range(4)]
    assert stage_layers(model) == {f"stages.{i}": [f"stages.{i}"] for i in range(4)}


def test_mixers_of_other_models_are_found() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=2)
    assert mixer_layers(vit) == ["blocks.0.attn", "blocks.1.attn"]
    assert mixer_layers(nn.Sequential(nn.Linear(4, 4), ATConvTokens(4))) == ["1"]
    assert mixer_layers(ATConvTokens(4)) == [""]
    assert stage_layers(vit) == {"blocks.1": ["blocks.0", "blocks.1"]}
    assert mixer_layers(nn.Linear(4, 4)) == []
    assert stage_layers(nn.Linear(4, 4)) == {}


@pytest.mark.parametrize("options", [{"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
def test_tokens_become_the_map_of_their_patches(options: dict[str, Any]) -> None:
    vit = timm.create_model(
        "vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=2, img_size=(32, 80), **options
    )
    images = torch.randn(2, 3, 32, 80)
    output = as_map(vit, vit.forward_features(images), (32, 80))
    assert output is not None
    assert output.shape == (2, 24, 2, 5)
    assert torch.equal(output.flatten(2).mT, vit.forward_features(images)[:, vit.num_prefix_tokens :])
    assert as_map(vit, torch.randn(2, 3, 24), (32, 80)) is None
    assert as_map(nn.Linear(4, 4), torch.randn(2, 3, 24), (32, 80)) is None


def test_outputs_are_those_of_the_layers() -> None:
    model: Any = tiny_attnet()
    images = torch.randn(2, 3, 32, 32)
    outputs = collect_outputs(model, images, ["stages.1", "stem"])
    assert list(outputs) == ["stages.1", "stem"]
    torch.testing.assert_close(outputs["stem"], model.stem(images))
    torch.testing.assert_close(outputs["stages.1"], model.stages[1](model.stages[0](model.stem(images))))
    assert outputs["stem"].requires_grad
    assert not model.stem._forward_hooks


def test_errors_name_layers_that_are_missing_or_do_not_run() -> None:
    model = tiny_attnet()
    with pytest.raises(ValueError, match=r"no layer stages\.9"):
        collect_outputs(model, torch.randn(1, 3, 32, 32), ["stem", "stages.9"])
    model.spare = nn.Identity()
    with pytest.raises(ValueError, match="layer spare did not run"):
        collect_outputs(model, torch.randn(1, 3, 32, 32), ["spare"])


def test_a_model_in_training_mode_stays_as_it_was() -> None:
    model: Any = tiny_attnet(token_mixer=["atconv", "atconv", "attention", "attention"]).train()
    model.stages[0].eval()  # such as a frozen one
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    collect_outputs(model, images, ["stem"])
    collect_attention(model, images)
    class_activation(model, images, torch.tensor([0, 1]), "stages.1")
    for kernels in collect_kernels(model, images).values():
        assert not kernels.requires_grad
        assert (kernels * torch.ones(1, requires_grad=True)).sum().requires_grad  # not of inference mode
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_modes_are_restored_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def fail() -> None:
        with eval_mode(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == [True, True, False]


def test_items_are_evenly_spaced() -> None:
    assert evenly_spaced(range(10), 4) == [0, 3, 6, 9]
    assert evenly_spaced(range(6), 3) == [0, 2, 5]
    assert evenly_spaced(range(3), 4) == [0, 1, 2]
    assert evenly_spaced("abc", 1) == ["a"]
