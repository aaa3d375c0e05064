"""A gated unit of plain layers, in the form that is fast where it runs."""

from __future__ import annotations

from typing import Any

import torch.fx
import torch.nn.functional as F
from timm.layers import RmsNorm2d
from torch import Tensor, nn

from atconv.ops.backend import uses_untried_triton
from atconv.ops.gated_product import GELU, project_gated
from atconv.ops.plain import is_plain
from atconv.ops.static_conv import DepthwiseConv2d, PointwiseConv2d, depthwise_conv, pointwise_conv

__all__ = ["WHOLE", "fused_gated_unit"]
for _leaf in ("depthwise_conv", "pointwise_conv", "project_gated"):  # of torch.fx's graphs
    torch.fx.wrap(_leaf)

WHOLE = 8
"""channels: hidden maps get a multiple of it, rows of whole 16 bytes in half precision"""


def fused_gated_unit(glu: Any, x: Tensor) -> Tensor | None:
    """What `atconv.models.attnet.ConvGLU` computes. None where that takes its layers one by one."""
    norm, act, proj = glu.norm, glu.act, glu.proj
    normalizes = is_plain(norm, RmsNorm2d)
    if not (is_plain(act, GELU) and is_plain(proj, PointwiseConv2d)):
        return None
    extra = _missing_channels(glu) if normalizes or isinstance(norm, nn.Identity) else 0
    if not (normalizes or extra):
        return None
    weight = proj.weight * norm.weight[:, None, None] if normalizes else proj.weight
    if not extra:
        gate, value = glu.dwconv(glu.gate_proj(x)), glu.value_proj(x)
        return project_gated(gate, value, norm.eps, weight, proj.bias)
    # Zeros stay zeros up to the product, and have no weight behind it.
    gate, value = (pointwise_conv(x, *_widened(layer, extra)) for layer in (glu.gate_proj, glu.value_proj))
    if isinstance(glu.dwconv, DepthwiseConv2d):
        gate = depthwise_conv(gate, *_widened(glu.dwconv, extra))
    weight = F.pad(weight, (0, 0, 0, 0, 0, extra))
    if normalizes:
        return project_gated(gate, value, norm.eps, weight, proj.bias, glu.hidden)
    return pointwise_conv(act(gate) * value, weight, proj.bias)


def _missing_channels(glu: Any) -> int:
    """How many channels of zeros the hidden maps get. Weights are padded in the graph, so that these have
    gradients and a compiler fuses it."""
    if not uses_untried_triton(glu.proj.weight):
        return 0
    convolves = is_plain(glu.dwconv, DepthwiseConv2d) or isinstance(glu.dwconv, nn.Identity)
    plain = convolves and all(is_plain(each, PointwiseConv2d) for each in (glu.gate_proj, glu.value_proj))
    return -glu.hidden % WHOLE if plain else 0


def _widened(layer: nn.Conv2d, extra: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with so many more outputs, which are zero."""
    weight, bias = layer.weight, layer.bias
    if isinstance(layer, DepthwiseConv2d):  # as there, for the strides of its gradient
        weight = weight.squeeze(1).unsqueeze(1)
    return F.pad(weight, (0, 0, 0, 0, 0, 0, 0, extra)), None if bias is None else F.pad(bias, (0, extra))
