from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune
from torch.testing._internal.two_tensor import TwoTensor

from atconv.ops.plain import is_plain


def test_a_layer_as_it_was_built_is_plain() -> None:
    assert is_plain(nn.Linear(3, 3), nn.Linear)
    assert is_plain(nn.Linear(3, 3, device="meta"), nn.Linear)
    assert not is_plain(nn.Linear(3, 3), nn.Conv2d)


def test_a_layer_whose_hook_is_removed_is_plain_again() -> None:
    layer = nn.Linear(3, 3)
    handle = layer.register_forward_hook(lambda *_: None)
    assert not is_plain(layer, nn.Linear)
    handle.remove()
    assert is_plain(layer, nn.Linear)


class Adapted(nn.Linear):
    """As adapters subclass it."""


def wrap_forward(layer: nn.Linear) -> None:
    """As accelerate's offload does."""
    inner = layer.forward
    layer.forward = lambda x: inner(x)


def wrap_weight(layer: nn.Linear) -> None:
    """A tensor of a subclass, as those of quantization and sharding."""
    layer.weight = nn.Parameter(TwoTensor(layer.weight.detach(), layer.weight.detach()))


def change_class(layer: nn.Linear) -> None:
    layer.__class__ = Adapted


CHANGES: dict[str, Callable[[nn.Linear], object]] = {
    "forward hook": lambda layer: layer.register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "parametrization": lambda layer: parametrizations.weight_norm(layer),
    "wrapped forward": wrap_forward,
    "wrapped weight": wrap_weight,
    "subclass": change_class,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_something_acts_on_is_not_plain(change: str) -> None:
    layer = nn.Linear(3, 3)
    CHANGES[change](layer)
    assert not is_plain(layer, nn.Linear)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_no_layer_is_plain_while_a_hook_of_all_modules_is_set(kind: str) -> None:
    layer = nn.Linear(3, 3)
    handle = getattr(torch_module, f"register_module_{kind}_hook")(lambda *_: None)
    try:
        assert not is_plain(layer, nn.Linear)
    finally:
        handle.remove()
    assert is_plain(layer, nn.Linear)


def test_weights_of_a_functional_call_are_plain() -> None:
    class Ask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert is_plain(self.layer, nn.Linear)
            return self.layer(x)

    module = Ask()
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    torch.func.functional_call(module, weights, torch.randn(2, 3))
