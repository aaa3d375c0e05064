"""A depthwise convolution whose gradient lies in memory as its weight does."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DepthwiseConv2d"]


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with one input channel a group: of weights C 1 K K.

    A channels-last convolution gives their gradient another stride on the axis of length 1. The values lie
    alike, but DistributedDataParallel compares strides, warns, and copies the gradient in every step.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if self.training:
            weight = weight.squeeze(1).unsqueeze(1)  # backwards, unsqueeze gives the strides of a new tensor
        return self._conv_forward(input, weight, self.bias)
