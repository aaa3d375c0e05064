"""Adaptive routing made visible: the kernels that ATConv makes from each picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atconv.analysis.features import evaluating
from atconv.mixers.convolution import DepthwiseConv
from atconv.modules import ATConv2d, ATConvTokens

__all__ = ["before_inhibition", "collect_kernels"]


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

    def keep(name: str, mixer: ATConv2d | ATConvTokens) -> None:
        original = mixer.kernels

        def kernels(x: Tensor) -> Tensor:
            found[name] = original(x)
            return found[name]

        mixer.kernels = kernels  # type: ignore[method-assign]

    layers = dict(model.named_modules())
    mixers = {name: m for name, m in layers.items() if isinstance(m, (ATConv2d, ATConvTokens))}
    static = {name: m.weight.transpose(0, 1) for name, m in layers.items() if isinstance(m, DepthwiseConv)}
    if not mixers and not static:
        raise ValueError(
            "the model has no ATConv mixer (ATConv2d or ATConvTokens): there are no kernels to show"
        )
    try:
        for name, mixer in mixers.items():
            keep(name, mixer)
        with evaluating(model):
            model(images)
    finally:
        for mixer in mixers.values():
            del mixer.kernels
    found |= static
    return {name: found[name].detach() for name in layers if name in found}


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
