"""Why a classifier predicts a class: which places of the image support it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atconv.analysis.features import (
    as_map,
    collect_outputs,
    eval_mode,
    prefix_tokens,
    run_hooked,
    stage_layers,
)
from atconv.analysis.rollout import collect_attention, rollout

__all__ = ["Explanation", "attention_support", "class_activation", "explain", "explanation_layer"]

_MIN_MAP_SIZE = 7


def class_activation(model: nn.Module, images: Tensor, classes: Tensor, layer: str) -> Tensor:
    """Class-activation maps by gradients (Grad-CAM), through a hook and in eval mode; the model
    stays as it was.

    The channels of a layer are summed, each weighted by the mean gradient of the logit with respect to it;
    negative values become 0. For a linear classifier on the mean over positions of that layer, this is
    the contribution of each position to the logit.

    Args:
        model: images → logits B classes.
        images: B in H W.
        classes: B class indices to explain.
        layer: name of a layer whose output is a map B C h w.

    Returns:
        B h w, not negative; the maximum of each is 1 (all zero where no position supports the class).

    Raises:
        ValueError: the model has no such layer, or its output is no map.

    Source: Grad-CAM, arXiv 1610.02391.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"the model has no layer {layer}")
    outputs: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        # A leaf has a gradient whether or not the layer's weights require one.
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = modules[layer].register_forward_hook(hook)
    with torch.enable_grad():
        logits = run_hooked(model, images, [handle])
        if not outputs or outputs[-1].ndim != 4:
            shape = tuple(outputs[-1].shape) if outputs else "nothing"
            raise ValueError(f"the layer {layer} must put out a map B C h w, got {shape}")
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), outputs[-1])
    maps = (gradient.mean((2, 3), keepdim=True) * outputs[-1]).sum(1).relu().detach()
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def attention_support(model: nn.Module, images: Tensor) -> Tensor:
    """Where the answer of a timm ViT comes from, whatever its class: attention rollout from the class token,
    or from all tokens where there is none, to the patches.

    Args:
        model: images → logits.
        images: B in H W.

    Returns:
        B h w, not negative; the maximum of each is 1.

    Raises:
        ValueError: the model has no global self-attention, or no grid of patches.
    """
    shares, prefix = rollout(list(collect_attention(model, images).values())), prefix_tokens(model)
    of_answer = shares[:, 0] if prefix else shares.mean(1)
    maps = as_map(model, of_answer[:, :, None], (images.shape[2], images.shape[3]))
    if maps is None:
        raise ValueError("the model has no grid of patches: its tokens cannot be shown as a map")
    return maps[:, 0] / maps.amax((2, 3))[:, :, None]


@dataclass(frozen=True)
class Explanation:
    """A classifier's prediction for one image, and which places support it."""

    predicted: str
    probability: float
    map: Tensor
    """h w, 0…1, from `class_activation` or `attention_support`"""


def explain(model: nn.Module, images: Tensor, classes: Sequence[str], layer: str | None) -> list[Explanation]:
    """Explain the predicted class of each image, B in H W, at a layer (see `explanation_layer`); by attention
    rollout where that is None.

    Raises:
        ValueError: there is neither such a layer nor global self-attention.
    """
    with torch.no_grad(), eval_mode(model):
        probabilities, predicted = model(images).float().softmax(1).max(1)
    if layer is None:
        maps = attention_support(model, images).cpu()
    else:
        maps = class_activation(model, images, predicted, layer).cpu()
    rows = zip(predicted.tolist(), probabilities.tolist(), maps, strict=True)
    return [Explanation(classes[index], probability, support) for index, probability, support in rows]


def explanation_layer(model: nn.Module, images: Tensor) -> str | None:
    """The layer that ends the deepest stage whose map has at least 7 × 7 positions, else the stage of the
    largest map; None for a model whose stages end in no maps."""
    with torch.no_grad():
        outputs = collect_outputs(model, images[:1], stage_layers(model))
    sizes = {name: min(output.shape[2:]) for name, output in outputs.items() if output.ndim == 4}
    fine = [name for name, size in sizes.items() if size >= _MIN_MAP_SIZE]
    return fine[-1] if fine else max(sizes, key=lambda name: sizes[name], default=None)
