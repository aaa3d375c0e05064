"""The dynamic depthwise convolution and its gradients as loops over taps in float64, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from atconv.functional import lateral_inhibition

Mistake = Literal["none", "tap", "border", "edge"]

# Largest error over the largest value: a unit in the last place of half precision, for sums in float32.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def convolve_by_loops(
    x: Tensor, kernel: Tensor, alpha: Tensor | None = None, mistake: Mistake = "none"
) -> Tensor:
    """y[b,c,p] = Σ_δ k̂[b,c,δ]·x[b,c,p+δ] tap by tap, in float64, for images and sequences.

    `mistake` makes one that kernels make: a tap that is its neighbor's, a border that repeats the map in
    place of zeros, or a last row that is not computed.
    """
    x, kernel = x.double(), kernel.double()
    if alpha is not None:
        kernel = lateral_inhibition(kernel, alpha.double())
    if x.ndim == 3:
        return convolve_by_loops(x.unsqueeze(2), kernel.unsqueeze(2), mistake=mistake).squeeze(2)
    (rows, columns), (height, width) = kernel.shape[2:], x.shape[2:]
    edges = (columns // 2,) * 2 + (rows // 2,) * 2
    padded = F.pad(x, edges, mode="replicate") if mistake == "border" else F.pad(x, edges)
    y = torch.zeros_like(x)
    for i in range(rows):
        for j in range(columns):
            wrong = mistake == "tap" and (i, j) == (rows - 1, columns - 1)
            tap = kernel[:, :, i, j - 1 if wrong else j]
            y = y + tap[:, :, None, None] * padded[..., i : i + height, j : j + width]
    return torch.cat([y[:, :, :-1], 0 * y[:, :, -1:]], 2) if mistake == "edge" else y


def with_gradients(y: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    """An output and the gradients of its inputs."""
    return [y, *torch.autograd.grad(y, inputs, cotangent.to(y.dtype))]


def error(actual: Tensor, expected: Tensor, scale: float = 1e-30) -> float:
    """Largest difference over the largest value, or over `scale` if that is larger; infinite where there is a
    value that is not finite."""
    assert actual.shape == expected.shape
    if not bool(torch.isfinite(actual).all()):
        return float("inf")
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(scale))


def errors(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Of output, and of the gradients of map, kernels and α. The last is a sum of those of kernels, which can
    cancel: it is compared with them."""
    scales = [1e-30] * 3 + [float(expected[2].abs().max())]
    return [error(a, e, scale) for a, e, scale in zip(actual, expected, scales, strict=True)]


def make_inputs(
    shape: Sequence[int],
    size: int | tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A map or sequence, kernels and α that take gradients, and the gradient of the output."""
    x, cotangent = (torch.randn(*shape, device=device).to(dtype) for _ in range(2))
    if channels_last:
        x, cotangent = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, cotangent))
    sizes = (size,) * (len(shape) - 2) if isinstance(size, int) else size
    kernel = torch.randn(*shape[:2], *sizes, device=device).to(dtype)
    # As autocast keeps it.
    alpha = torch.randn(shape[1], device=device, dtype=torch.promote_types(dtype, torch.float32))
    return x.requires_grad_(), kernel.requires_grad_(), alpha.requires_grad_(), cotangent
