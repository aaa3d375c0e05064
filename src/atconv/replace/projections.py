"""Value and output projection of an attention, read from the layers that a library gives it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = [
    "Projections",
    "from_map_qkv",
    "from_qkv",
    "last_rows",
    "separate",
    "unknown_layer",
    "weights_of",
]

Weights = tuple[Tensor, "Tensor | None"]
Projections = tuple[Weights, Weights]
"""of values and output, C C and C each, as ATConv has them too"""


def unknown_layer(attention: Any) -> str:
    """Why value and output cannot be read from its layers: adapters or quantized ones; "" where they can."""
    for name in ("qkv", "kv", "v_proj", "proj", "o_proj", "out_proj", "to_v", "to_out"):
        layer = getattr(attention, name, None)
        layer = layer[0] if isinstance(layer, nn.ModuleList) else layer
        if layer is not None and not isinstance(layer, (nn.Linear, nn.Conv2d)):
            kind = type(layer).__name__
            return f"its {name} is a {kind}: merge adapters, and quantize after attention is replaced"
    return ""


def from_qkv(module: Any, dim: int) -> Projections | None:
    """Of a qkv projection whose last third makes the values; None where the shapes are others, or where a
    norm or a gate lies between values and output."""
    between = (getattr(module, name, None) for name in ("norm", "gate"))
    if any(layer is not None and not isinstance(layer, nn.Identity) for layer in between):
        return None
    if getattr(module, "qkv", None) is None:
        return separate(module.v_proj, module.proj, dim)
    if module.qkv.weight.shape != (3 * dim, dim) or module.proj.weight.shape != (dim, dim):
        return None
    weight, bias = last_rows(module.qkv.weight, module.qkv.bias, dim)
    return (weight, getattr(module, "v_bias", None) if bias is None else bias), weights_of(module.proj)


def weights_of(layer: Any) -> Weights:
    """Of a linear layer or a 1×1 convolution."""
    return layer.weight.flatten(1), layer.bias


def last_rows(weight: Tensor, bias: Tensor | None, count: int) -> Weights:
    return weight[-count:], None if bias is None else bias[-count:]


def separate(value: Any, output: Any, dim: int) -> Projections | None:
    """Of two linear layers; None where the attention is wider or narrower inside."""
    if value.weight.shape != (dim, dim) or output.weight.shape != (dim, dim):
        return None
    return weights_of(value), weights_of(output)


def from_map_qkv(module: Any, dim: int) -> Projections | None:
    """Of 1×1 convolutions; with heads first, each head holds its own query, key and value."""
    weight, bias = weights_of(module.qkv)
    if weight.shape != (3 * dim, dim):
        return None
    if module.head_first:
        heads = (module.num_heads, 3, -1)
        weight = weight.unflatten(0, heads).transpose(0, 1).flatten(0, 2)
        bias = None if bias is None else bias.unflatten(0, heads).transpose(0, 1).flatten(0, 2)
    return last_rows(weight, bias, dim), weights_of(module.proj)
