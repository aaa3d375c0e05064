"""The floor: a model's own products and convolutions, each alone in its best form and layout.

No arrangement of the same products runs faster than their sum on the machine it was measured on; what a model
takes above it goes into norms, activations, sums and copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timing import by_turns
from torch import Tensor, nn

from atconv.modules import ATConv2d


@dataclass(frozen=True)
class Product:
    """One convolution or linear layer at the size a model runs it."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int = 1
    groups: int = 1
    dynamic: bool = False
    """a kernel for each sample, so B·C of them"""

    @property
    def kind(self) -> str:
        if len(self.weight) == 2 or self.weight[2:] == (1, 1):
            return "1×1"
        if self.groups == 1:
            return "strided"
        return "depthwise, dynamic" if self.dynamic else "depthwise, static"


@torch.inference_mode()
def products(model: nn.Module, images: Tensor) -> Counter[Product]:
    """Every product of one forward pass, and how often it occurs."""
    found: Counter[Product] = Counter()

    def note(module: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        shape = tuple(inputs[0].shape)
        if isinstance(module, ATConv2d):
            batch, channels = shape[:2]
            size, bins = module.kernel_size, module.kernel_size**2
            # Context and generator see the pooled map.
            found[Product((batch * bins, channels), (channels, channels))] += 1
            found[Product((batch * channels, bins), (bins, bins))] += 1
            kernels = (batch * channels, 1, size, size)
            found[Product(shape, kernels, groups=batch * channels, dynamic=True)] += 1
        elif isinstance(module, nn.Conv2d):
            weight = tuple(module.weight.shape)
            found[Product(shape, weight, module.stride[0], module.groups)] += 1
        else:
            rows = inputs[0].shape[:-1].numel()
            found[Product((rows, shape[-1]), tuple(module.weight.shape))] += 1

    kinds = (ATConv2d, nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    model(images)
    for hook in hooks:
        hook.remove()
    return found


@torch.inference_mode()
def floor(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Seconds of all products of a forward pass by kind, each in the fastest of its forms."""
    total: dict[str, float] = {}
    for product, count in products(model, images).items():
        fastest = min(by_turns(_forms(product, images.dtype)).values())
        total[product.kind] = total.get(product.kind, 0.0) + count * fastest
    return total


def _forms(product: Product, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    x, weight = torch.randn(product.input, dtype=dtype), torch.randn(product.weight, dtype=dtype)
    if x.ndim == 2:
        return {"linear": lambda: F.linear(x, weight)}
    if product.kind == "1×1":
        rows = torch.randn(x.numel() // x.shape[1], x.shape[1], dtype=dtype)
        flat = weight.flatten(1)
        return {"linear": lambda: F.linear(rows, flat)} | _convolutions(product, x, weight)
    if product.dynamic:
        return _dynamic(x, weight)
    return _convolutions(product, x, weight)


def _convolutions(product: Product, x: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    options: Any = {"stride": product.stride, "groups": product.groups, "padding": weight.shape[-1] // 2}
    last = x.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last)
    return {
        "channels-first": lambda: F.conv2d(x, weight, **options),
        "channels-last": lambda: F.conv2d(*last, **options),
    }


def _dynamic(x: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    """All samples as groups of one convolution, or a convolution for each sample."""
    batch, channels = x.shape[:2]
    padding = weight.shape[-1] // 2
    whole = x.reshape(1, batch * channels, *x.shape[2:])
    samples = x.to(memory_format=torch.channels_last).split(1)
    kernels = weight.split(channels)
    return {
        "whole batch": lambda: F.conv2d(whole, weight, padding=padding, groups=batch * channels),
        "by sample": lambda: [
            F.conv2d(one, own, padding=padding, groups=channels)
            for one, own in zip(samples, kernels, strict=True)
        ],
    }
