"""Triton kernels of the dynamic depthwise convolution with 3 × 3 taps, for maps whose channels lie together.

The two programs of `triton_conv`, which has them for every size. A program here has a strip of columns and
channels and walks down its rows: a row is read once for each of the three columns of taps and goes into the
sums of the three rows it is a neighbor of. So a value is loaded three times in place of nine, and the taps
once for a strip in place of once for a tile.
"""

# Arguments of kernels have no types: Triton compiles them for those they are launched with.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from atconv.ops.layout import lies_channels_last

__all__ = ["STRIPS", "Strips", "convolve", "correlate", "walks"]


@dataclass
class Strips:
    """How a map is divided: `convolve` as it was quickest on an H100, `correlate` by hand until it is
    measured (`make gpu`, part `tiles`)."""

    columns: int
    """of a strip"""
    channels: int
    """of a strip, at most: widths such as 72 or 96 fill parts of 64 badly"""
    warps: int
    """of one program"""
    programs: int
    """that keep a GPU busy: with fewer, strips are cut shorter"""
    stages: int = 1
    """rows that are on their way from memory, in `convolve`"""


STRIPS = {"convolve": Strips(4, 128, 4, 1024, 3), "correlate": Strips(8, 64, 1, 1024)}
_SHORTEST = 8  # rows of a strip; two more are read around it
_NARROWEST = 32  # channels of a strip


def walks(x: Tensor, rows: int, columns: int) -> bool:
    """Whether the kernels here take a map B C H W and this size of kernels."""
    return rows == columns == 3 and lies_channels_last(x) and x.dtype != torch.float64 and x.shape[2] > 1


@triton.jit
def _strip(C, H, W, ROWS, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sample, strip, strips, first row, columns and channels of this program. Parts of the channels come
    first, so that programs that run together share positions."""
    parts = tl.cdiv(C, BLOCK_C)
    across = tl.cdiv(W, BLOCK_W)
    strips = tl.cdiv(H, ROWS) * across
    program = tl.program_id(0)
    strip = (program // parts) % strips
    columns = (strip % across) * BLOCK_W + tl.arange(0, BLOCK_W)
    channels = (program % parts) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (program // parts // strips).to(tl.int64), strip, strips, strip // across * ROWS, columns, channels


@triton.jit
def _row(x, row, columns, channels, first, stop, C, W, sc, sh, sw):
    """Values of a row at columns × channels in float32, zero outside of the map and of rows first … stop."""
    inside = (row >= first) & (row < stop) & (columns >= 0) & (columns < W)
    offsets = (columns * sw)[:, None] + (channels * sc)[None, :]
    values = tl.load(x + row * sh + offsets, mask=inside[:, None] & (channels < C)[None, :], other=0.0)
    return values.to(tl.float32)


@triton.jit
def _tap(k, tap, channels, C, kc, kt, FLIP: tl.constexpr):
    place = 8 - tap if FLIP else tap
    return tl.load(k + channels * kc + place * kt, mask=channels < C, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["H", "W", "ROWS", "kb"])
def _convolve_kernel(
    x, k, s, b, y, C, H, W, ROWS, xb, xc, xh, xw, kb, kc, kt, yb, yc, yh, yw,
    FLIP: tl.constexpr, INHIBIT: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    sample, _, _, first, columns, channels = _strip(C, H, W, ROWS, BLOCK_W, BLOCK_C)
    x += sample * xb
    k += sample * kb
    y += sample * yb
    k0 = _tap(k, 0, channels, C, kc, kt, FLIP)
    k1 = _tap(k, 1, channels, C, kc, kt, FLIP)
    k2 = _tap(k, 2, channels, C, kc, kt, FLIP)
    k3 = _tap(k, 3, channels, C, kc, kt, FLIP)
    k4 = _tap(k, 4, channels, C, kc, kt, FLIP)
    k5 = _tap(k, 5, channels, C, kc, kt, FLIP)
    k6 = _tap(k, 6, channels, C, kc, kt, FLIP)
    k7 = _tap(k, 7, channels, C, kc, kt, FLIP)
    k8 = _tap(k, 8, channels, C, kc, kt, FLIP)
    if INHIBIT:
        strength = tl.load(s + channels, mask=channels < C, other=0.0).to(tl.float32)[None, :]
        mean = (k0 + k1 + k2 + k3 + k4 + k5 + k6 + k7 + k8) * (strength / 9)
        k0, k1, k2 = k0 - mean, k1 - mean, k2 - mean
        k3, k4, k5 = k3 - mean, k4 - mean, k5 - mean
        k6, k7, k8 = k6 - mean, k7 - mean, k8 - mean
    # What a row starts from, and the sums of the row above the one that is read and of that row itself: both
    # still lack what lies below them.
    start = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    if BIAS:
        start += tl.load(b + channels, mask=channels < C, other=0.0).to(tl.float32)[None, :]
    above, here = start, start
    stop = tl.minimum(first + ROWS, H)
    offsets = (columns * yw)[:, None] + (channels * yc)[None, :]
    inside = (columns < W)[:, None] & (channels < C)[None, :]
    for row in tl.range(first - 1, stop + 1, num_stages=STAGES):
        left = _row(x, row, columns - 1, channels, 0, H, C, W, xc, xh, xw)
        middle = _row(x, row, columns, channels, 0, H, C, W, xc, xh, xw)
        right = _row(x, row, columns + 1, channels, 0, H, C, W, xc, xh, xw)
        done = above + left * k6 + middle * k7 + right * k8
        tl.store(y + (row - 1) * yh + offsets, done.to(y.dtype.element_ty), mask=inside & (row > first))
        above = here + left * k3 + middle * k4 + right * k5
        here = start + left * k0 + middle * k1 + right * k2


@triton.jit
def _store_sum(out, tap, products, channels, C):
    tl.store(out + tap * C + channels, tl.sum(products, axis=0), mask=channels < C)


@triton.jit(do_not_specialize=["H", "W", "ROWS"])
def _correlate_kernel(
    x, g, out, C, H, W, ROWS, xb, xc, xh, xw, gb, gc, gh, gw,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    sample, strip, strips, first, columns, channels = _strip(C, H, W, ROWS, BLOCK_W, BLOCK_C)
    x += sample * xb
    g += sample * gb
    out += (sample * strips + strip) * 9 * C
    zeros = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros
    stop = tl.minimum(first + ROWS, H)
    # Rows of the gradient above the row that is read of x, and there: before the strip, so zero, but read.
    # Where both start as one constant, Triton 3.6 drops the first as if the loop never changed it.
    above = _row(g, first - 2, columns, channels, first, stop, C, W, gc, gh, gw)
    here = _row(g, first - 1, columns, channels, first, stop, C, W, gc, gh, gw)
    for row in tl.range(first - 1, stop + 1):
        left = _row(x, row, columns - 1, channels, 0, H, C, W, xc, xh, xw)
        middle = _row(x, row, columns, channels, 0, H, C, W, xc, xh, xw)
        right = _row(x, row, columns + 1, channels, 0, H, C, W, xc, xh, xw)
        below = _row(g, row + 1, columns, channels, first, stop, C, W, gc, gh, gw)
        t0, t1, t2 = t0 + left * below, t1 + middle * below, t2 + right * below
        t3, t4, t5 = t3 + left * here, t4 + middle * here, t5 + right * here
        t6, t7, t8 = t6 + left * above, t7 + middle * above, t8 + right * above
        above, here = here, below
    _store_sum(out, 0, t0, channels, C)
    _store_sum(out, 1, t1, channels, C)
    _store_sum(out, 2, t2, channels, C)
    _store_sum(out, 3, t3, channels, C)
    _store_sum(out, 4, t4, channels, C)
    _store_sum(out, 5, t5, channels, C)
    _store_sum(out, 6, t6, channels, C)
    _store_sum(out, 7, t7, channels, C)
    _store_sum(out, 8, t8, channels, C)


def convolve(
    x: Tensor, taps: Tensor, strength: Tensor | None, bias: Tensor | None, flip: bool, y: Tensor
) -> None:
    """Write into `y` what `triton_conv.convolve` returns; `taps` are B C 9."""
    grid, rows, options = _launch(*x.shape, "convolve")
    with torch.cuda.device_of(x):
        _convolve_kernel[grid](
            x, taps, taps if strength is None else strength, taps if bias is None else bias, y,
            *x.shape[1:], rows, *x.stride(), *taps.stride(), *y.stride(),
            FLIP=flip, INHIBIT=strength is not None, BIAS=bias is not None,
            STAGES=STRIPS["convolve"].stages, **options,
        )  # fmt: skip


def correlate(x: Tensor, gradient: Tensor) -> Tensor:
    """Products of two maps at 3 × 3 offsets, a sum for each strip: B strips 9 C, in float32."""
    batch, channels = x.shape[:2]
    grid, rows, options = _launch(*x.shape, "correlate")
    strips = grid[0] // (batch * -(-channels // options["BLOCK_C"]))
    partial = torch.empty(batch, strips, 9, channels, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _correlate_kernel[grid](
            x, gradient, partial, *x.shape[1:], rows, *x.stride(), *gradient.stride(), **options
        )
    return partial


@lru_cache(1024)
def _launch(
    batch: int, channels: int, height: int, width: int, program: str
) -> tuple[tuple[int], int, dict[str, Any]]:
    """The grid of programs, the rows of a strip, and constants."""
    strips = STRIPS[program]
    block_c = strips.channels
    while block_c > _NARROWEST and channels % block_c:
        block_c //= 2
    block_w = strips.columns * strips.channels // block_c
    programs = batch * -(-width // block_w) * -(-channels // block_c)
    rows = -(-height // max(1, min(-(-height // _SHORTEST), strips.programs // programs)))
    options = {"BLOCK_W": block_w, "BLOCK_C": block_c, "num_warps": strips.warps}
    return (programs * -(-height // rows),), rows, options
