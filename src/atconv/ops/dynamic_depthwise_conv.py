"""Cross-correlation of every channel of every sample with a kernel of its own.

All forms here are the same function of a map B C *S with 1, 2 or 3 axes S and kernels B C *K, K odd.
`stride`, `padding` (zeros on both sides) and `dilation` have a number for each axis.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from atconv.ops.backend import autocast_dtype, is_recorded, uses_triton
from atconv.ops.layout import both_ends, channels_last, is_channels_last
from atconv.ops.processor import cpu_computes
from atconv.ops.tracing import is_symbolic

__all__ = [
    "LARGE_SAMPLE",
    "by_sample",
    "channels_first",
    "dynamic_depthwise_conv",
    "grouped",
    "is_shared",
    "share_kernels",
    "shared",
    "shifted",
    "triton",
    "triton_computes",
]

LARGE_SAMPLE = 2**16
"""values of a map from which a convolution of its own pays, measured on two cores"""


def dynamic_depthwise_conv(
    x: Tensor, kernel: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """Choose a form. `kernel` has the dtype of `x`; it is 1 C *K where all samples share it."""
    if not torch.jit.is_scripting():
        return _form(x, kernel)(x, kernel, stride, padding, dilation)
    if is_shared(kernel):
        return shared(x, kernel, stride, padding, dilation)
    return grouped(x, kernel, stride, padding, dilation)


def _form(x: Tensor, kernel: Tensor) -> Callable[..., Tensor]:
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
    """Whether all samples share one kernel, 1 C *K."""
    # In an export the batch is a symbol: comparing it with 1 would fix it there.
    return isinstance(kernel.shape[0], int) and kernel.shape[0] == 1


def share_kernels(kernel: Tensor, x: Tensor) -> Tensor:
    """B G *K → B C *K: each kernel for the C / G neighboring channels of a map that share it."""
    shared = x.shape[1] // kernel.shape[1]
    return kernel if shared == 1 else kernel.repeat_interleave(shared, dim=1)


def shared(x: Tensor, kernel: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """One depthwise convolution: the kernel 1 C *K is the same in every sample."""
    return _convolve(x, kernel.transpose(0, 1), stride, padding, dilation, x.shape[1])


def grouped(x: Tensor, kernel: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """All samples side by side as channels of one image: one grouped convolution for the batch."""
    batch, channels = x.shape[:2]
    sample = x.flatten(0, 1).unsqueeze(0)
    y = _convolve(sample, kernel.flatten(0, 1).unsqueeze(1), stride, padding, dilation, batch * channels)
    y = y.squeeze(0).unflatten(0, (batch, channels))
    return channels_last(y) if is_channels_last(x) else y


def channels_first(
    x: Tensor, kernel: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """One convolution in that layout, and back."""
    convolve = shared if is_shared(kernel) else grouped
    return channels_last(convolve(x.contiguous(), kernel, stride, padding, dilation))


def by_sample(
    x: Tensor, kernel: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """One convolution for each sample: a channels-last batch need not leave that layout and return to it."""
    pairs = zip(x.split(1), kernel.split(1), strict=True)
    return torch.cat([shared(image, of_image, stride, padding, dilation) for image, of_image in pairs])


def shifted(x: Tensor, kernel: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """Shifted maps, each times its weight.

    For compiling and export: batch and sizes stay symbols. A convolution with B·C groups does not convert to
    ONNX, and torch.compile makes it again for every size. A compiler fuses the products; in eager mode they
    are slower than a convolution.
    """
    sizes, axes = kernel.shape[2:], x.ndim - 2
    padded = F.pad(x, both_ends(padding))
    taps = kernel.flatten(2).unflatten(2, [-1] + [1] * axes).unbind(2)
    # Ends counted from the back are constants in the graph; counted from the front they would be symbols.
    bands = [padded]
    for axis, (size, s, d) in enumerate(zip(sizes, stride, dilation, strict=True), start=2):
        before = (slice(None),) * axis
        windows = [(*before, slice(d * i, d * (i - size + 1) or None, s)) for i in range(size)]
        bands = [band[window] for band in bands for window in windows]
    # Operators, as elsewhere: torch.export numbers torch.add and `+` apart, and PT2E mixes equal numbers up.
    return functools.reduce(operator.add, map(operator.mul, bands, taps))


def triton_computes(
    x: Tensor, kernel: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> bool:
    """Whether our own kernels take this case: sequences and images that keep their size, without dilation."""
    if x.ndim == 5 or kernel.device != x.device or not uses_triton(x):
        return False
    axes = x.ndim - 2
    same = [size // 2 for size in kernel.shape[2:]]
    return stride == [1] * axes and dilation == [1] * axes and padding == same


def triton(x: Tensor, kernel: Tensor, alpha: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Our own kernels for GPUs. They inhibit as they load, and take `kernel` in any dtype. Under autocast the
    map is in half precision, as for PyTorch's convolutions."""
    from atconv.ops import triton_conv  # Triton is not installed everywhere

    x = x.to(autocast_dtype(x))
    strength = None if alpha is None else share_kernels(torch.sigmoid(alpha)[None], x)[0]
    kernel = share_kernels(kernel, x).expand(x.shape[0], *[-1] * (x.ndim - 1))
    recorded = is_recorded(x, kernel, bias)
    compute = triton_conv.convolve if recorded else triton_conv.launch_convolve
    if x.ndim == 4:
        return compute(x, kernel, strength, bias, False)
    return compute(x.unsqueeze(2), kernel.unsqueeze(2), strength, bias, False).squeeze(2)


def _convolve(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """torch's convolution for the number of axes."""
    if x.ndim == 3:
        return F.conv1d(x, weight, None, stride, padding, dilation, groups)
    if x.ndim == 5:
        return F.conv3d(x, weight, None, stride, padding, dilation, groups)
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)
