"""Triton kernels of the adaptive average pooling of a map along its raster, and of its gradient.

    pool      c[b,c,i] = mean of x[b,c,p] over the positions p of bin i
    spread    x[b,c,p] = Σ_i g[b,c,i] / (positions of bin i), over the bins i that hold p

Each is the gradient of the other. Bin i covers positions ⌊i·N/n⌋ up to ⌈(i+1)·N/n⌉; bins may share positions.
Maps are read and written once, by their strides. Sums are in float32 (float64 for float64), in an order that
never changes.
"""

# Arguments of kernels have no types: Triton compiles them for those they are launched with.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, register_autograd

from atconv.ops.backend import addressable
from atconv.ops.layout import lies_channels_last
from atconv.ops.triton_conv import sum_dtype, sum_type, tile_channels

__all__ = ["launch_pool", "pool", "spread"]

_VALUES = 4096  # of a tile: positions × channels
_FEWEST = 8  # positions of a tile
_PROGRAMS = 1024  # that keep a GPU busy


@triton.jit
def _bin(i, N, BINS):
    """First position of a bin, and the one behind its last. Many bins of many positions: 32 bits overflow."""
    i = tl.cast(i, tl.int64)
    return (i * N // BINS).to(tl.int32), (((i + 1) * N + BINS - 1) // BINS).to(tl.int32)


@triton.jit(do_not_specialize=["W", "N", "BINS", "SPLITS"])
def _pool_kernel(
    x, out, C, W, N, BINS, SPLITS, xb, xc, xh, xw,
    TYPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    parts = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    channels = (program % parts) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = (program // parts) % SPLITS
    i = (program // parts // SPLITS) % BINS
    sample = (program // parts // SPLITS // BINS).to(tl.int64)
    start, stop = _bin(i, N, BINS)
    total = tl.zeros([BLOCK_P, BLOCK_C], TYPE)
    for first in range(start + split * BLOCK_P, stop, SPLITS * BLOCK_P):
        positions = first + tl.arange(0, BLOCK_P)
        offsets = ((positions // W) * xh + (positions % W) * xw)[:, None] + (channels * xc)[None, :]
        mask = (positions < stop)[:, None] & (channels < C)[None, :]
        total += tl.load(x + sample * xb + offsets, mask=mask, other=0.0).to(TYPE)
    mean = tl.sum(total, axis=0) / (stop - start)
    place = ((sample * SPLITS + split) * BINS + i) * C
    tl.store(out + place + channels, mean.to(out.dtype.element_ty), mask=channels < C)


@triton.jit(do_not_specialize=["W", "N", "BINS", "gb", "gc", "gi"])
def _spread_kernel(
    g, out, C, W, N, BINS, gb, gc, gi, yb, yc, yh, yw,
    TYPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    parts = tl.cdiv(C, BLOCK_C)
    tiles = tl.cdiv(N, BLOCK_P)
    program = tl.program_id(0)
    channels = (program % parts) * BLOCK_C + tl.arange(0, BLOCK_C)
    positions = (program // parts) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    sample = (program // parts // tiles).to(tl.int64)
    total = tl.zeros([BLOCK_P, BLOCK_C], TYPE)
    for i in range(BINS):
        start, stop = _bin(i, N, BINS)
        share = tl.load(g + sample * gb + channels * gc + i * gi, mask=channels < C, other=0.0).to(TYPE)
        inside = (positions >= start) & (positions < stop)
        total += tl.where(inside[:, None], (share / (stop - start))[None, :], 0.0)
    offsets = ((positions // W) * yh + (positions % W) * yw)[:, None] + (channels * yc)[None, :]
    mask = (positions < N)[:, None] & (channels < C)[None, :]
    tl.store(out + sample * yb + offsets, total.to(out.dtype.element_ty), mask=mask)


def launch_pool(x: Tensor, bins: int) -> Tensor:
    """Means of the bins of a map: B C H W → B C bins, whose channels lie together as a projection wants."""
    batch, channels, height, width = x.shape
    positions = height * width
    blocks = _blocks(channels, lies_channels_last(x), -(-positions // bins))
    parts = -(-channels // blocks["BLOCK_C"])
    # Few large bins are split, so that there are programs enough.
    tiles = -(-positions // (bins * blocks["BLOCK_P"]))
    splits = max(1, min(tiles, _PROGRAMS // (batch * bins * parts)))
    dtype = x.dtype if splits == 1 else sum_dtype(x)
    out = torch.empty(batch, splits, bins, channels, dtype=dtype, device=x.device)
    with torch.cuda.device_of(x):
        _pool_kernel[(batch * bins * splits * parts,)](
            x, out, channels, width, positions, bins, splits, *x.stride(), TYPE=sum_type(x), **blocks
        )
    means = out.squeeze(1) if splits == 1 else out.sum(1).to(x.dtype)
    return means.transpose(1, 2)


pool = custom_op("atconv::pool", launch_pool, mutates_args=())
"""`launch_pool` as an operator of torch's: with a gradient, and known to compilers."""


@custom_op("atconv::spread", mutates_args=())
def spread(gradient: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    """Every bin's value, divided by its number of positions, at each of them: B C bins → B C H W."""
    (batch, channels, bins), positions = gradient.shape, height * width
    out = _empty_spread(gradient, height, width, channels_last)
    blocks = _blocks(channels, channels_last, positions)
    programs = batch * triton.cdiv(positions, blocks["BLOCK_P"]) * triton.cdiv(channels, blocks["BLOCK_C"])
    with torch.cuda.device_of(gradient):
        _spread_kernel[(programs,)](
            gradient, out, channels, width, positions, bins, *gradient.stride(), *out.stride(),
            TYPE=sum_type(gradient), **blocks,
        )  # fmt: skip
    return out


def _blocks(channels: int, channels_last: bool, positions: int) -> dict[str, int]:
    """A tile whose longer edge lies along memory, with no more positions than there are to take."""
    block_c = tile_channels(channels) if channels_last else 8
    block_p = _VALUES // block_c
    while block_p // 2 >= max(positions, _FEWEST):
        block_p //= 2
    return {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": max(1, block_p * block_c // 1024)}


def _empty_spread(gradient: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        *gradient.shape[:2], height, width,
        dtype=gradient.dtype, device=gradient.device, memory_format=layout,
    )  # fmt: skip


@pool.register_fake
def _(x: Tensor, bins: int) -> Tensor:
    return torch.empty(x.shape[0], bins, x.shape[1], dtype=x.dtype, device=x.device).transpose(1, 2)


@spread.register_fake
def _(gradient: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    return _empty_spread(gradient, height, width, channels_last)


def _save_pool(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x = inputs[0]
    ctx.layout = x.shape[2], x.shape[3], lies_channels_last(x)


def _save_spread(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.bins = inputs[0].shape[2]


def _pool_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return spread(gradient, *ctx.layout), None


def _spread_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    return pool(addressable(gradient), ctx.bins), None, None, None


register_autograd(pool, _pool_gradient, setup_context=_save_pool)
register_autograd(spread, _spread_gradient, setup_context=_save_spread)
