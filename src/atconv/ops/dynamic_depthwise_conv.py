"""Cross-correlation of every channel of every sample with a kernel of its own.

All forms here are the same function of a map B C H W and kernels B C K K, K odd: zero padding K//2, stride 1.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from atconv.ops.layout import channels_last, is_channels_last
from atconv.ops.processor import cpu_computes
from atconv.ops.tracing import is_symbolic

__all__ = [
    "LARGE_SAMPLE",
    "by_sample",
    "channels_first",
    "dynamic_depthwise_conv",
    "grouped",
    "is_shared",
    "shared",
    "shifted",
    "triton",
]

LARGE_SAMPLE = 2**16
"""values of a map from which a convolution of its own pays, measured on two cores"""


def dynamic_depthwise_conv(x: Tensor, kernel: Tensor) -> Tensor:
    """Choose a form. `kernel` has the dtype of `x`; it is 1 C K K where all samples share it."""
    if not torch.jit.is_scripting():
        return _form(x, kernel)(x, kernel)
    return shared(x, kernel) if is_shared(kernel) else grouped(x, kernel)


def _form(x: Tensor, kernel: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    if is_symbolic() or x.shape[0] == 0:
        return shared if is_shared(kernel) else shifted
    last_on_cpu = x.device.type == "cpu" and is_channels_last(x)
    # Where products are emulated, a channels-last convolution takes 50 times as long as in float32.
    if last_on_cpu and not cpu_computes(x.dtype):
        return channels_first
    if is_shared(kernel):
        return shared
    # Once a sample is large enough to hide the cost of a call; on GPUs calls cost more.
    return by_sample if last_on_cpu and x[0].numel() >= LARGE_SAMPLE else grouped


def is_shared(kernel: Tensor) -> bool:
    """Whether all samples share one kernel, 1 C K K."""
    # In an export the batch is a symbol: comparing it with 1 would fix it there.
    return isinstance(kernel.shape[0], int) and kernel.shape[0] == 1


def shared(x: Tensor, kernel: Tensor) -> Tensor:
    """One depthwise convolution: the kernel 1 C K K is the same in every sample."""
    return F.conv2d(x, kernel.transpose(0, 1), padding=kernel.shape[-1] // 2, groups=x.shape[1])


def grouped(x: Tensor, kernel: Tensor) -> Tensor:
    """All samples side by side as channels of one image: one grouped convolution for the batch."""
    batch, channels, height, width = x.shape
    size, groups = kernel.shape[-1], batch * channels
    y = F.conv2d(
        x.reshape(1, groups, height, width),
        kernel.reshape(groups, 1, size, size),
        padding=size // 2,
        groups=groups,
    ).reshape(batch, channels, height, width)
    return channels_last(y) if is_channels_last(x) else y


def channels_first(x: Tensor, kernel: Tensor) -> Tensor:
    """One convolution in that layout, and back."""
    convolve = shared if is_shared(kernel) else grouped
    return channels_last(convolve(x.contiguous(), kernel))


def by_sample(x: Tensor, kernel: Tensor) -> Tensor:
    """One convolution for each sample: a channels-last batch need not leave that layout and return to it."""
    pairs = zip(x.split(1), kernel.split(1), strict=True)
    return torch.cat([shared(sample, own) for sample, own in pairs])


def shifted(x: Tensor, kernel: Tensor) -> Tensor:
    """K² shifted maps, each times its weight.

    For compiling and export: batch, height and width stay symbols. A convolution with B·C groups does not
    convert to ONNX, and torch.compile makes it again for every size. A compiler fuses the products; in eager
    mode they are slower than a convolution.
    """
    size = kernel.shape[-1]
    padded = F.pad(x, (size // 2,) * 4)
    taps = kernel.flatten(2).unsqueeze(3).split(1, dim=2)
    # Ends counted from the back are constants in the graph; counted from the front they would be symbols.
    windows = [slice(i, i - size + 1 or None) for i in range(size)]
    bands = [padded[..., rows, :] for rows in windows]
    products = (band[..., columns] for band in bands for columns in windows)
    # Operators, as elsewhere: torch.export numbers torch.add and `+` apart, and PT2E mixes equal numbers up.
    return functools.reduce(operator.add, map(operator.mul, products, taps))


def triton(x: Tensor, kernel: Tensor, alpha: Tensor | None) -> Tensor:
    """Our own kernels for GPUs. They inhibit as they load, and take `kernel` in any dtype."""
    from atconv.ops import triton_conv  # Triton is not installed everywhere

    strength = None if alpha is None else torch.sigmoid(alpha)
    return triton_conv.convolve(x, kernel.expand(x.shape[0], -1, -1, -1), strength, False)
