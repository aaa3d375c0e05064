"""Collected weights reproduce the layer; rollout of known weights is known."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import AttentionRope
from torch import Tensor, nn

from atconv.analysis.rollout import collect_attention, rollout
from atconv.mixers import create_mixer
from support.helpers import assert_close, randomize


@pytest.mark.parametrize("rope", [False, True])
def test_collected_weights_give_the_layers_output(rope: bool) -> None:
    mixer: Any = randomize(create_mixer("attention", 32, head_dim=8, rope=rope)).eval()
    x = torch.randn(2, 32, 4, 3)
    (weights,) = collect_attention(mixer, x).values()
    assert weights.shape == (2, 4, 12, 12)
    layer, tokens = mixer.attention, x.flatten(2).transpose(1, 2)
    values = layer.qkv(tokens).reshape(2, 12, 3, 4, 8)[:, :, 2].transpose(1, 2)
    mixed = layer.proj((weights @ values).transpose(1, 2).flatten(2))
    assert_close(mixer(x).flatten(2).transpose(1, 2), mixed, 1e-5)


def test_key_heads_that_several_query_heads_share() -> None:
    layer: Any = AttentionRope(32, num_heads=4, num_kv_heads=2, qkv_fused=False, num_prefix_tokens=0).eval()
    randomize(layer)
    x = torch.randn(2, 12, 32)
    (weights,) = collect_attention(layer, x).values()
    values = layer.v_proj(x).reshape(2, 12, 2, 8).transpose(1, 2).repeat_interleave(2, dim=1)
    assert_close(layer(x), layer.proj((weights @ values).transpose(1, 2).flatten(2)), 1e-5)


def test_every_layer_of_a_vit_is_collected_and_the_model_stays_as_it_was() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    before = model(images)
    collected = collect_attention(model, images)
    assert list(collected) == [f"blocks.{i}.attn" for i in range(12)]
    assert all(layer.shape == (2, 3, 17, 17) for layer in collected.values())
    assert_close(torch.stack(list(collected.values())).sum(-1), torch.ones(12, 2, 3, 17), 1e-6)
    assert torch.equal(model(images), before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    mixed = rollout(list(collected.values()))
    assert mixed.shape == (2, 17, 17)
    assert_close(mixed.sum(-1), torch.ones(2, 17), 1e-5)


def uniform(count: int) -> Tensor:
    return torch.full((1, 2, count, count), 1 / count)


def test_rollout_of_known_weights() -> None:
    eye = torch.eye(4).expand(1, 2, 4, 4)
    assert_close(rollout([eye, eye])[0], torch.eye(4), 1e-6)
    assert_close(rollout([uniform(4)])[0], torch.eye(4) / 2 + 1 / 8, 1e-6)
    shift = torch.eye(4).roll(1, 0).expand(1, 2, 4, 4)  # each token looks at the one before it
    once = (torch.eye(4) + torch.eye(4).roll(1, 0)) / 2
    assert_close(rollout([shift, shift])[0], once @ once, 1e-6)
    first, second = torch.rand(1, 2, 4, 4).softmax(-1), torch.rand(1, 2, 4, 4).softmax(-1)
    later = (second.mean(1) + torch.eye(4)) / 2
    assert_close(rollout([first, second]), later @ ((first.mean(1) + torch.eye(4)) / 2), 1e-6)


def test_models_without_attention_are_rejected() -> None:
    with pytest.raises(ValueError, match="no self-attention layer"):
        collect_attention(nn.Conv2d(3, 3, 1), torch.randn(1, 3, 4, 4))
    for layers in ([], [uniform(4), uniform(3)]):
        with pytest.raises(ValueError, match="rollout takes the layers of one stack"):
            rollout(layers)
