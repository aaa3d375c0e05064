"""Convolutions, static and made from content, as token mixers on maps: B C H W → B C H W."""

from __future__ import annotations

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import CondConv2d
from timm.models.metaformer import Pooling as PoolFormerPooling
from torch import Tensor, nn

from atconv.mixers.checking import check_input, check_min, check_odd
from atconv.ops.static_conv import DepthwiseConv2d

__all__ = ["CondConv", "DepthwiseConv", "Identity", "Involution", "Pooling"]


class DepthwiseConv(DepthwiseConv2d):
    """One static K×K kernel a channel, zero padding.

    Args:
        dim: channels C.
        kernel_size: odd K.

    Source: MobileNet (arXiv 1704.04861); with K = 7 as a token mixer, ConvNeXt (arXiv 2201.03545).
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
    ) -> None:
        check_odd(kernel_size)
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, self.in_channels)
        return super().forward(input)

    def macs(self, height: int, width: int) -> int:
        return height * width * self.weight.numel()


class Pooling(PoolFormerPooling):
    """Average of the K×K neighborhood minus the position itself; nothing is learned.

    Source: PoolFormer (arXiv 2111.11418).
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
    ) -> None:
        check_odd(kernel_size)
        super().__init__(kernel_size)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.dim)
        return super().forward(x)

    def macs(self, height: int, width: int) -> int:
        return 0  # additions only


class Involution(nn.Module):
    """A K×K kernel made at every position from that position alone, shared by the channels of a group.

    Args:
        dim: channels C.
        kernel_size: odd K.
        group_width: channels that share a kernel, rounded down to a divisor of `dim`.
        reduction: the kernels are made from C/reduction channels.

    Source: Involution (arXiv 2103.06255).
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        group_width: int = 16,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        check_odd(kernel_size)
        check_min(group_width=group_width, reduction=reduction)
        width = next(w for w in range(min(group_width, dim), 0, -1) if dim % w == 0)
        self.dim, self.kernel_size, self.groups = dim, kernel_size, dim // width
        hidden = max(1, dim // reduction)
        self.reduce = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU())
        self.span = nn.Conv2d(hidden, kernel_size**2 * self.groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.dim)
        size, (height, width) = self.kernel_size, x.shape[2:]
        kernels = self.span(self.reduce(x)).unflatten(1, (self.groups, 1, size**2))  # B groups 1 K² H W
        around = F.unfold(x, size, padding=size // 2).unflatten(1, (self.groups, -1, size**2))
        return (kernels * around.unflatten(4, (height, width))).sum(3).flatten(1, 2)

    def macs(self, height: int, width: int) -> int:
        hidden = self.span.in_channels
        kernels = self.dim * hidden + hidden * self.span.out_channels
        return height * width * (kernels + self.kernel_size**2 * self.dim)


class CondConv(nn.Module):
    """A K×K depthwise kernel for each sample: a mixture of learned kernels, weighted by its mean.

    Args:
        dim: channels C.
        kernel_size: odd K.
        experts: number of kernels in the mixture.

    Source: CondConv (arXiv 1904.04971).
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
        experts: int = 4,
    ) -> None:
        super().__init__()
        check_odd(kernel_size)
        check_min(experts=experts)
        self.dim, self.experts = dim, experts
        self.routing = nn.Linear(dim, experts)
        self.conv = CondConv2d(dim, dim, kernel_size, groups=dim, bias=True, num_experts=experts)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.dim)
        return self.conv(x, torch.sigmoid(self.routing(x.mean((2, 3)))))

    def macs(self, height: int, width: int) -> int:
        kernel = self.conv.weight.shape[1]
        return height * width * kernel + self.experts * (self.dim + kernel + self.dim)


class Identity(nn.Identity):
    """No mixing: shows what the rest of the network does alone."""

    def __init__(
        self,
        dim: int,
    ) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, self.dim)
        return input

    def macs(self, height: int, width: int) -> int:
        return 0


torch.fx.wrap("check_input")
