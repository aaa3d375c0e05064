"""Adaptive routing: the kernels that ATConv makes from each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atconv.analysis.features import eval_mode
from atconv.functional import lateral_inhibition
from atconv.mixers.convolution import DepthwiseConv
from atconv.modules.base import ATConv

__all__ = ["before_inhibition", "collect_kernels", "detach_kernels"]


@torch.no_grad()
def collect_kernels(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The kernels k̂ that every ATConv mixer of a model makes for a batch, by the mixer's name, and the static
    kernels of the depthwise convolutions of `atconv.mixers`.

    Works for any model that contains the mixers, in eval mode, and leaves it as it was.

    Args:
        images: the model's input, batch first.

    Returns:
        B C K K for each mixer that ran (1 C K K for one without routing), in the model's order.

    Raises:
        ValueError: the model has no such mixer.
    """
    modules = dict(model.named_modules())
    static = {
        n: m.weight.transpose(0, 1).detach() for n, m in modules.items() if isinstance(m, DepthwiseConv)
    }
    if not static and not any(isinstance(module, ATConv) for module in modules.values()):
        raise ValueError(
            "the model has no ATConv mixer (such as ATConv2d or ATConvTokens): there are no kernels to show"
        )
    collected: dict[str, Tensor] = {}

    def keep(name: str, kernels: Tensor) -> Tensor:
        collected[name] = kernels
        return kernels

    with _map_kernels(model, keep), eval_mode(model):
        model(images)
    collected |= static
    return {name: collected[name].detach() for name in modules if name in collected}


def detach_kernels(model: nn.Module) -> AbstractContextManager[None]:
    """For a while, no gradient passes through the kernels of a model's ATConv mixers: gradients count how an
    input changes the values, not how it changes the kernels."""
    return _map_kernels(model, lambda name, kernels: kernels.detach())


@contextmanager
def _map_kernels(model: nn.Module, function: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """For a while, mixers use function(their name, the kernels they made) as their kernels."""
    mixers = [(name, module) for name, module in model.named_modules() if isinstance(module, ATConv)]

    def mapped(name: str, raw: Callable[[Tensor], tuple[Tensor, Tensor | None]]) -> Callable[..., Any]:
        def kernels(x: Tensor) -> tuple[Tensor, None]:
            kernel, alpha = raw(x)
            return function(name, lateral_inhibition(kernel, alpha)), None

        return kernels

    try:
        for name, mixer in mixers:
            mixer.raw_kernels = mapped(name, mixer.raw_kernels)  # type: ignore[method-assign]
        yield
    finally:
        for _, mixer in mixers:
            del mixer.raw_kernels


def before_inhibition(kernels: Tensor, strength: Tensor) -> Tensor:
    """The kernels k from which lateral inhibition made k̂ = k − λ·mean(k).

    Args:
        kernels: k̂, B C K K.
        strength: λ, C, below 1.

    Returns:
        k, B C K K.
    """
    # mean(k̂) = (1 − λ)·mean(k)
    return kernels + (strength / (1 - strength))[:, None, None] * kernels.mean((2, 3), keepdim=True)
