"""Adaptive routing made visible: the kernels that ATConv makes from each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from atconv.analysis.features import evaluating
from atconv.mixers.convolution import DepthwiseConv
from atconv.modules import ATConv2d, ATConvTokens

__all__ = ["before_inhibition", "collect_kernels", "hold_kernels"]


@torch.no_grad()
def collect_kernels(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The kernels k̂ that every ATConv mixer of a model makes for a batch, by the mixer's name; and those that
    `atconv.mixers`' static depthwise convolutions have.

    Works for any model that contains the mixers, in eval mode, and leaves it as it was.

    Args:
        images: the model's input, batch first.

    Returns:
        B C K K for each mixer that ran (1 C K K for one without routing), in the model's order.

    Raises:
        ValueError: the model has no such mixer.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, made: Tensor) -> Tensor:
        found[name] = made
        return made

    layers = dict(model.named_modules())
    static = {name: m.weight.transpose(0, 1) for name, m in layers.items() if isinstance(m, DepthwiseConv)}
    if not static and not any(isinstance(m, _MIXERS) for m in layers.values()):
        raise ValueError(
            "the model has no ATConv mixer (ATConv2d or ATConvTokens): there are no kernels to show"
        )
    with _kernels_through(model, keep), evaluating(model):
        model(images)
    found |= static
    return {name: found[name].detach() for name in layers if name in found}


def hold_kernels(model: nn.Module) -> AbstractContextManager[None]:
    """While it is open, no gradient passes through the kernels of a model's ATConv mixers: what an input
    changes by making other kernels does not count, only the way of the values does."""
    return _kernels_through(model, lambda name, made: made.detach())


_MIXERS = (ATConv2d, ATConvTokens)


@contextmanager
def _kernels_through(model: nn.Module, function: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """While it is open, mixers take function(their name, the kernels they made) for their kernels."""
    mixers = [(name, module) for name, module in model.named_modules() if isinstance(module, _MIXERS)]
    try:
        for name, mixer in mixers:
            mixer.kernels = _changed(name, mixer.kernels, function)  # type: ignore[assignment, method-assign]
        yield
    finally:
        for _, mixer in mixers:
            del mixer.kernels


def _changed(
    name: str, original: Callable[[Tensor], Tensor], function: Callable[[str, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    return lambda x: function(name, original(x))


def before_inhibition(kernels: Tensor, strength: Tensor) -> Tensor:
    """The kernels k that lateral inhibition made k̂ = k − λ·mean(k) of.

    Args:
        kernels: k̂, B C K K.
        strength: λ, C, below 1.

    Returns:
        k, B C K K.
    """
    # mean(k̂) = (1 − λ)·mean(k)
    return kernels + (strength / (1 - strength))[:, None, None] * kernels.mean((2, 3), keepdim=True)
