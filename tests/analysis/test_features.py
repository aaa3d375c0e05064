"""Which layers mix tokens, and what they put out."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from atconv import ATConvTokens
from atconv.analysis.features import collect_outputs, mixer_layers, stage_layers
from atconv.mixers import mixer_names
from helpers import tiny_attnet


@pytest.mark.parametrize("name", mixer_names())
def test_every_mixer_of_a_backbone_is_found_once(name: str) -> None:
    model = tiny_attnet(token_mixer=name)
    assert mixer_layers(model) == [f"stages.{i}.blocks.0.token_mixer" for i in range(4)]
    assert stage_layers(model) == [f"stages.{i}" for i in range(4)]


def test_mixers_of_other_models_are_found() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=2)
    assert mixer_layers(vit) == ["blocks.0.attn", "blocks.1.attn"]
    assert mixer_layers(nn.Sequential(nn.Linear(4, 4), ATConvTokens(4))) == ["1"]
    assert mixer_layers(ATConvTokens(4)) == [""]
    assert mixer_layers(nn.Linear(4, 4)) == stage_layers(nn.Linear(4, 4)) == []


def test_outputs_are_those_of_the_layers() -> None:
    model: Any = tiny_attnet()
    images = torch.randn(2, 3, 32, 32)
    found = collect_outputs(model, images, ["stages.1", "stem"])
    assert list(found) == ["stages.1", "stem"]
    torch.testing.assert_close(found["stem"], model.stem(images))
    torch.testing.assert_close(found["stages.1"], model.stages[1](model.stages[0](model.stem(images))))
    assert found["stem"].requires_grad
    assert not model.stem._forward_hooks


def test_layers_that_are_not_there_or_do_not_run_are_named() -> None:
    model = tiny_attnet()
    with pytest.raises(ValueError, match=r"no layer stages\.9"):
        collect_outputs(model, torch.randn(1, 3, 32, 32), ["stem", "stages.9"])
    model.spare = nn.Identity()
    with pytest.raises(ValueError, match="layer spare did not run"):
        collect_outputs(model, torch.randn(1, 3, 32, 32), ["spare"])
