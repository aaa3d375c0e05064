"""Adaptive average pooling of a map B C H W into n bins, along the raster or over a √n × √n grid → B C n."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from atconv.ops.backend import uses_triton
from atconv.ops.layout import flatten_positions
from atconv.ops.tracing import is_symbolic

__all__ = ["adaptive", "as_product", "pool"]


def pool(x: Tensor, bins: int, context_grid: bool) -> Tensor:
    """Choose a form; all are the same function."""
    # On MPS adaptive pooling takes only sizes that the bins divide (pytorch issue 96056).
    if not torch.jit.is_scripting():
        by_triton = not context_grid and uses_triton(x)
        if by_triton:
            return _triton(x, bins)
        product = is_symbolic() or x.device.type == "mps"
        if product:
            return as_product(x, bins, context_grid)
    return adaptive(x, bins, context_grid)


def _triton(x: Tensor, bins: int) -> Tensor:
    from atconv.ops import triton_pool  # Triton is not installed everywhere

    return triton_pool.pool(x, bins)


def adaptive(x: Tensor, bins: int, context_grid: bool) -> Tensor:
    """torch's adaptive pooling."""
    if context_grid:
        return F.adaptive_avg_pool2d(x, int(bins**0.5)).flatten(2)
    return F.adaptive_avg_pool1d(flatten_positions(x), bins)


def as_product(x: Tensor, bins: int, context_grid: bool) -> Tensor:
    """One product with the share that each position has in each bin.

    For compiling and export: height and width stay symbols. Adaptive pooling converts to ONNX with the traced
    size baked in, and torch.compile makes it again for every size.
    """
    height, width = x.shape[2:]
    if context_grid:
        size = math.isqrt(bins)
        rows, columns = _shares(height, size, x), _shares(width, size, x)
        shares = (rows[:, None, :, None] * columns[:, None]).reshape(bins, height * width)
    else:
        shares = _shares(height * width, bins, x)
    positions = x.flatten(2).transpose(1, 2)
    return torch.bmm(shares.expand(x.shape[0], -1, -1), positions).transpose(1, 2)


def _shares(positions: int, bins: int, like: Tensor) -> Tensor:
    """The weight of each position in the mean of each bin of adaptive pooling: bins × positions."""
    index = torch.arange(bins, device=like.device)[:, None]
    start = index * positions // bins
    stop = ((index + 1) * positions + bins - 1) // bins
    position = torch.arange(positions, device=like.device)
    inside = torch.logical_and(position >= start, position < stop)  # Core ML takes no &
    return inside.to(like.dtype) / (stop - start)
