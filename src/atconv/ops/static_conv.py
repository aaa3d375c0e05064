"""Convolutions with learned kernels as layers, each in the form that is fast where it runs."""

from __future__ import annotations

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from atconv.ops.backend import uses_triton
from atconv.ops.dynamic_depthwise_conv import triton
from atconv.ops.layout import from_rows, lies_channels_last, to_rows
from atconv.ops.tracing import is_exporting

__all__ = ["DepthwiseConv2d", "PointwiseConv2d", "depthwise_conv", "pointwise_conv"]
for _leaf in ("depthwise_conv", "pointwise_conv"):  # of torch.fx's graphs
    torch.fx.wrap(_leaf)


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution of a map B C H W with weights C' C 1 1 and a bias C', or None.

    On a GPU a channels-last map is rows of a matrix: a product adds the bias as it goes, where a convolution
    reads and writes the map once more to add it.
    """
    if not torch.jit.is_scripting():
        as_product = x.is_cuda and x.ndim == 4 and lies_channels_last(x) and not is_exporting()
        if as_product:
            return from_rows(F.linear(to_rows(x), weight.flatten(1), bias))
    return F.conv2d(x, weight, bias)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One K×K kernel for each channel of a map B C H W, which keeps its size; weights C 1 K K, a bias C or
    None."""
    size = weight.shape[2]
    if not torch.jit.is_scripting():
        # Those of other sizes were not measured.
        by_triton = size == 3 and x.ndim == 4 and lies_channels_last(x) and uses_triton(x)
        if by_triton:
            return triton(x, weight.transpose(0, 1), None, bias)
    return F.conv2d(x, weight, bias, padding=size // 2, groups=len(weight))


class PointwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` of size 1: `pointwise_conv` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return pointwise_conv(input, self.weight, self.bias)


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with one input channel a group, stride 1 and padding that keeps the size: weights C 1 K K.

    A channels-last convolution gives their gradient another stride on the axis of length 1. The values lie
    alike, but DistributedDataParallel compares strides, warns, and copies the gradient in every step.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if self.training:
            weight = weight.squeeze(1).unsqueeze(1)  # backwards, unsqueeze gives the strides of a new tensor
        if self.groups == self.out_channels:
            return depthwise_conv(input, weight, self.bias)
        return self._conv_forward(input, weight, self.bias)  # LoRA's first half is of its layer's class
