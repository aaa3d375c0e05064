from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath, LayerScale2d
from torch import Tensor, nn

from atconv.ops.residual import add_branch
from support.helpers import assert_close


def scale_and_drop(rate: float) -> tuple[LayerScale2d, DropPath]:
    scale = LayerScale2d(6)
    nn.init.normal_(scale.gamma)
    return scale.double(), DropPath(rate)


def with_gradients(z: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [z, *torch.autograd.grad(z.cos().sum(), inputs)]


@pytest.mark.parametrize("training", [True, False])
def test_a_branch_is_scaled_and_dropped_as_by_its_layers(training: bool) -> None:
    scale, drop = scale_and_drop(0.5)
    drop.train(training)
    x, y = (torch.randn(8, 6, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.manual_seed(3)
    expected = with_gradients(x + drop(scale(y)), x, y, scale.gamma)
    torch.manual_seed(3)
    actual = with_gradients(add_branch(x, y, scale, drop), x, y, scale.gamma)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-14)
    dropped = (actual[0] == x).flatten(1).all(1)
    assert dropped.any() == training
    assert not dropped.all()


def test_layers_that_something_acts_on_are_called() -> None:
    for hooked in range(2):
        layers = scale_and_drop(0.0)
        layers[hooked].register_forward_hook(lambda module, args, output: 2 * output)
        x, y = (torch.randn(2, 6, 3, 2, dtype=torch.float64) for _ in range(2))
        assert_close(add_branch(x, y, *layers), x + 2 * y * layers[0].gamma.view(-1, 1, 1), 1e-14)


def test_half_precision_branches_join_maps_in_full_precision() -> None:
    scale, x, y = LayerScale2d(6, 0.3), torch.randn(2, 6, 3, 2), torch.randn(2, 6, 3, 2).bfloat16()
    z = add_branch(x, y, scale, nn.Identity())
    assert z.dtype == torch.float32
    assert_close(z, x.double() + 0.3 * y.double(), 1e-6)
