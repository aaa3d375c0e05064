"""The floor: every product and convolution of a network at its own size, each alone in its best form.

What a network takes above it goes to everything else: norms, activations, gates, sums, copies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv.deploy.timing import median_seconds
from atconv.modules import ATConv2d

__all__ = ["Product", "floor_seconds", "list_products"]


@dataclass(frozen=True)
class Product:
    """A linear layer or convolution on maps of a size."""

    kind: str
    """linear, pointwise, dense, depthwise, dynamic"""
    shape: tuple[int, ...]
    """of the input"""
    out: int
    """channels"""
    kernel: int = 1
    stride: int = 1

    @property
    def macs(self) -> int:
        if self.kind == "linear":
            return math.prod(self.shape) * self.out
        batch, channels, height, width = self.shape
        places = batch * -(-height // self.stride) * -(-width // self.stride)
        per_place = self.kernel**2 * (1 if self.kind in ("depthwise", "dynamic") else channels)
        return places * per_place * self.out


@torch.inference_mode()
def list_products(model: nn.Module, images: Tensor) -> Counter[Product]:
    """What a network multiplies on these images, and how often."""
    products: Counter[Product] = Counter()

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        shape = tuple(inputs[0].shape)
        if isinstance(module, nn.Conv2d):
            size, stride = int(module.kernel_size[0]), int(module.stride[0])
            depthwise = module.groups > 1
            kind = "depthwise" if depthwise else "pointwise" if size == 1 else "dense"
            products[Product(kind, shape, module.out_channels, size, stride)] += 1
        elif isinstance(module, nn.Linear):
            products[Product("linear", shape, module.out_features)] += 1
        elif isinstance(module, ATConv2d):
            products[Product("dynamic", shape, module.in_channels, module.kernel_size)] += 1

    hooks = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear, ATConv2d))
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return products


@torch.inference_mode()
def floor_seconds(products: Counter[Product], dtype: torch.dtype) -> dict[str, float]:
    """Seconds by kind: the best form of each product times how often it occurs."""
    seconds: Counter[str] = Counter()
    for product, count in products.items():
        best = min(median_seconds(_forms(product, dtype)).values())
        seconds[product.kind] += best * count
    return dict(seconds)


def _forms(product: Product, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """The ways to compute it, as calls. Agreement of their results is asserted."""
    x = torch.randn(product.shape, dtype=dtype)
    if product.kind == "linear":
        weight, bias = (
            torch.randn(product.out, product.shape[-1], dtype=dtype),
            torch.randn(product.out, dtype=dtype),
        )
        return {"linear": partial(F.linear, x, weight, bias)}
    if product.kind == "dynamic":
        forms = _dynamic_forms(x, torch.randn(*x.shape[:2], product.kernel, product.kernel, dtype=dtype))
    else:
        forms = _static_forms(product, x)
    results = [call().float() for call in forms.values()]
    for other in results[1:]:
        error = (other - results[0]).norm() / results[0].norm()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2), (product, error)
    return dict(forms)


def _static_forms(product: Product, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    groups = product.shape[1] if product.kind == "depthwise" else 1
    weight = torch.randn(
        product.out, product.shape[1] // groups, product.kernel, product.kernel, dtype=x.dtype
    )
    bias = torch.randn(product.out, dtype=x.dtype)
    options = {"stride": product.stride, "padding": product.kernel // 2, "groups": groups}
    last = {"memory_format": torch.channels_last}
    forms: dict[str, Callable[[], Tensor]] = {
        "channels first": partial(F.conv2d, x, weight, bias, **options),  # type: ignore[arg-type]
        "channels last": partial(F.conv2d, x.to(**last), weight.to(**last), bias, **options),  # type: ignore[arg-type]
    }
    if product.kind == "pointwise":
        rows, flat = x.permute(0, 2, 3, 1).contiguous(), weight[:, :, 0, 0]
        forms["linear"] = lambda: F.linear(rows, flat, bias).permute(0, 3, 1, 2)
    return forms


def _dynamic_forms(x: Tensor, kernel: Tensor) -> dict[str, Callable[[], Tensor]]:
    batch, channels, height, width = x.shape
    size = kernel.shape[-1]
    groups, flat = batch * channels, x.reshape(1, batch * channels, height, width)
    stacked = kernel.reshape(groups, 1, size, size)
    samples = x.contiguous(memory_format=torch.channels_last).split(1)
    weights = [kernels.unsqueeze(1) for kernels in kernel]

    def by_batch() -> Tensor:
        return F.conv2d(flat, stacked, padding=size // 2, groups=groups).view(x.shape)

    def by_sample() -> Tensor:
        pairs = zip(samples, weights, strict=True)
        return torch.cat([F.conv2d(one, weight, padding=size // 2, groups=channels) for one, weight in pairs])

    return {"one convolution": by_batch, "one a sample": by_sample}
