"""Class-activation maps of cases whose maps are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atconv.analysis.explanation import class_activation


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
