"""Adaptive average pooling of a map B C *S into n bins, along the raster or over a grid of cells → B C n."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from atconv.ops.backend import is_recorded, uses_triton
from atconv.ops.layout import flatten_positions
from atconv.ops.tracing import is_symbolic

__all__ = ["adaptive", "as_product", "pool"]


def pool(x: Tensor, bins: int, grid: list[int] | None) -> Tensor:
    """Choose a form; all are the same function. `grid` has the cells of each axis, `bins` of them."""
    # On MPS adaptive pooling takes only sizes that the bins divide (pytorch issue 96056).
    if not torch.jit.is_scripting():
        by_triton = (x.ndim == 3 or (x.ndim == 4 and grid is None)) and uses_triton(x)
        if by_triton:
            return _triton(x, bins)
        product = is_symbolic() or x.device.type == "mps"
        if product:
            return as_product(x, bins, grid)
    return adaptive(x, bins, grid)


def _triton(x: Tensor, bins: int) -> Tensor:
    from atconv.ops import triton_pool  # Triton is not installed everywhere

    compute = triton_pool.pool if is_recorded(x) else triton_pool.launch_pool
    return compute(x if x.ndim == 4 else x.unsqueeze(2), bins)


def adaptive(x: Tensor, bins: int, grid: list[int] | None) -> Tensor:
    """torch's adaptive pooling."""
    if grid is None or x.ndim == 3:
        return F.adaptive_avg_pool1d(flatten_positions(x), bins)
    if x.ndim == 4:
        return F.adaptive_avg_pool2d(x, (grid[0], grid[1])).flatten(2)
    return F.adaptive_avg_pool3d(x, (grid[0], grid[1], grid[2])).flatten(2)


def as_product(x: Tensor, bins: int, grid: list[int] | None) -> Tensor:
    """One product with the share that each position has in each bin.

    For compiling and export: sizes stay symbols. Adaptive pooling converts to ONNX with the traced size baked
    in, and torch.compile makes it again for every size. Half precision holds no share of a large bin: shares
    and sums are float32 there, under autocast too.
    """
    dtype, device = x.dtype, x.device.type
    x = x if dtype == torch.float64 else x.float()
    positions = x.flatten(2).transpose(1, 2)
    if grid is None:
        shares = _shares(positions.shape[1], bins, x)
    else:
        shares = _shares(x.shape[2], grid[0], x)
        for length, cells in zip(x.shape[3:], grid[1:], strict=True):
            shares = (shares[:, None, :, None] * _shares(length, cells, x)[:, None]).flatten(2).flatten(0, 1)
    by_autocast = device != "meta" and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if by_autocast else nullcontext():
        means = torch.bmm(shares.expand(x.shape[0], -1, -1), positions)
    return means.transpose(1, 2).to(dtype)


def _shares(positions: int, bins: int, like: Tensor) -> Tensor:
    """The weight of each position in the mean of each bin of adaptive pooling: bins × positions."""
    index = torch.arange(bins, device=like.device)[:, None]
    start = index * positions // bins
    stop = ((index + 1) * positions + bins - 1) // bins
    position = torch.arange(positions, device=like.device)
    inside = torch.logical_and(position >= start, position < stop)  # Core ML takes no &
    return inside.to(like.dtype) / (stop - start)
