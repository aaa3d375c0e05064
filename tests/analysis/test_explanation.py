"""Class-activation maps of cases whose maps are known."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import timm
import torch
from torch import Tensor, nn

from atconv.analysis.explanation import attention_support, class_activation, explain


class Linear(nn.Module):
    """Logits are the mean over positions of a map times weights: each position's contribution is known."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(1, 3, 1)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.map(x).mean((2, 3)))


@pytest.mark.parametrize("grad", [True, False])
def test_a_linear_head_gives_each_positions_contribution_to_the_logit(grad: bool) -> None:
    model = Linear().requires_grad_(grad).eval()
    nn.init.zeros_(model.map.bias)  # so that some positions support a class and some oppose it
    images, classes = torch.randn(2, 1, 5, 6), torch.tensor([1, 3])
    with torch.no_grad():
        maps = class_activation(model, images, classes, "map")
        parts = torch.einsum("bchw,bc->bhw", model.map(images), model.fc.weight[classes]).relu()
    torch.testing.assert_close(maps, parts / parts.amax((1, 2), keepdim=True))
    assert not model.map._forward_hooks


def test_a_class_that_every_position_opposes_has_an_empty_map() -> None:
    model = Linear()
    nn.init.constant_(model.map.weight, 1)
    nn.init.constant_(model.map.bias, 0)
    nn.init.constant_(model.fc.weight, -1)
    maps = class_activation(model, torch.rand(1, 1, 3, 3), torch.tensor([0]), "map")
    assert float(maps.abs().max()) == 0


def test_missing_layers_and_layers_without_a_map_are_rejected() -> None:
    model, images, classes = Linear(), torch.randn(1, 1, 3, 3), torch.tensor([0])
    with pytest.raises(ValueError, match="no layer stage"):
        class_activation(model, images, classes, "stage")
    with pytest.raises(ValueError, match=r"must put out a map B C h w, got \(1, 4\)"):
        class_activation(model, images, classes, "fc")
    assert not model.fc._forward_hooks


def test_attention_that_looks_at_one_patch_puts_all_support_there() -> None:
    """Keys are zero but for one patch, which queries of all tokens match."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3).eval()
    attention: Any = model.blocks[0].attn
    with mock.patch("atconv.analysis.rollout._weights") as weights:
        share = torch.zeros(1, attention.num_heads, 5, 5)
        share[..., 1 + 2] = 1.0  # behind the class token, the third patch
        weights.return_value = share
        maps = attention_support(model, torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(maps, torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]))
    [explanation] = explain(model, torch.randn(1, 3, 32, 32), ["a", "b", "c"], None)
    assert explanation.map.shape == (2, 2)
    with pytest.raises(ValueError, match="no self-attention"):
        attention_support(Linear(), torch.randn(1, 1, 5, 6))
