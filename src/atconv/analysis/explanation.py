"""Why a classifier said what it said: where in the picture its answer comes from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from atconv.analysis.features import run_hooked

__all__ = ["class_activation"]


def class_activation(model: nn.Module, images: Tensor, classes: Tensor, layer: str) -> Tensor:
    """Class-activation maps by gradients (Grad-CAM), through a hook and in eval mode; the model
    stays as it was.

    The channels of a layer are summed, each weighted by the mean gradient of the logit with respect to it;
    what is negative is cut off. For a linear classifier on the mean over positions of that layer, this is
    each position's part in the logit.

    Args:
        model: images → logits B classes.
        images: B in H W.
        classes: B class indices to explain.
        layer: name of a layer that puts out a map B C h w.

    Returns:
        B h w, not negative; the greatest of each is 1 (all zero where nothing speaks for the class).

    Raises:
        ValueError: the model has no such layer, or it puts out no map.

    Source: Grad-CAM, arXiv 1610.02391.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"the model has no layer {layer}")
    kept: list[Tensor] = []

    def hook(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        # A leaf, so that the gradient is found whether or not the weights take part in it.
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = modules[layer].register_forward_hook(hook)
    with torch.enable_grad():
        logits = run_hooked(model, images, [handle])
        if not kept or kept[-1].ndim != 4:
            shape = tuple(kept[-1].shape) if kept else "nothing"
            raise ValueError(f"the layer {layer} must put out a map B C h w, got {shape}")
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), kept[-1])
    maps = (gradient.mean((2, 3), keepdim=True) * kept[-1]).sum(1).relu().detach()
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
