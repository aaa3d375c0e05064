"""Triton kernels of the dynamic depthwise convolution, with and without lateral inhibition.

KH × KW taps for each sample and channel, shared by all positions; a sequence is a map of one row. Two
programs:

    convolve     y[b,c,p] = Σ_δ k̂[b,c,δ] · x[b,c,p+δ]       k̂ = k − λ·mean(k), made as k is loaded
    correlate    t[b,c,δ] = Σ_p g[b,c,p] · x[b,c,p+δ]        one sum for each tile, then over tiles

The gradient of the map is `convolve` with the taps in reverse order, that of the taps is `correlate`, and
both have each other as gradients: all orders of derivatives run on the two.

Both read tensors by their strides: channels-first, channels-last, tokens B N C as they lie, slices. A program
handles a tile of positions and channels; neighbors of a tile come from the cache. Sums are in float32
(float64 for float64), in an order that never changes: results are equal bit for bit.
"""

# Arguments of kernels have no types: Triton compiles them for those they are launched with.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, register_autograd

from atconv.ops import triton_rows
from atconv.ops.backend import addressable
from atconv.ops.layout import lies_channels_last

__all__ = [
    "TUNING",
    "Tuning",
    "convolve",
    "correlate",
    "empty_map",
    "launch_convolve",
    "sum_dtype",
    "sum_type",
    "tile_channels",
]

# Taps that are unrolled as a whole, and those of a row where rows are unrolled: 49 taps take a minute to
# compile.
_UNROLLED, _UNROLLED_ROW = 9, 11


@dataclass
class Tuning:
    """How a kernel is divided: so that Triton 3.6 keeps all in registers on an H100, until it is measured
    (`make gpu`, part `tiles`)."""

    values: int
    """of a tile: positions × channels"""
    warps: int
    """of one program"""


TUNING = {"convolve": Tuning(2048, 8), "correlate": Tuning(8192, 8)}


@triton.jit
def _place(C, H, W, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sample, tile, rows, columns and channels of this program. Parts of the channels come first, so that
    programs that run together share positions."""
    parts = tl.cdiv(C, BLOCK_C)
    across = tl.cdiv(W, BLOCK_W)
    tiles = tl.cdiv(H, BLOCK_H) * across
    program = tl.program_id(0)
    tile = (program // parts) % tiles
    position = tl.arange(0, BLOCK_H * BLOCK_W)
    rows = (tile // across) * BLOCK_H + position // BLOCK_W
    columns = (tile % across) * BLOCK_W + position % BLOCK_W
    channels = (program % parts) * BLOCK_C + tl.arange(0, BLOCK_C)
    sample = (program // parts // tiles).to(tl.int64)
    return sample, tile, tiles, rows, columns, channels


@triton.jit
def _values(x, rows, columns, channels, C, H, W, sc, sh, sw):
    """Values of a map at positions × channels, zero outside of it."""
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    offsets = (rows * sh + columns * sw)[:, None] + (channels * sc)[None, :]
    return tl.load(x + offsets, mask=inside[:, None] & (channels < C)[None, :], other=0.0)


@triton.jit(do_not_specialize=["H", "W", "kb", "kc", "kt"])
def _convolve_kernel(
    x, k, s, b, y, C, H, W, xb, xc, xh, xw, kb, kc, kt, yb, yc, yh, yw,
    KH: tl.constexpr, KW: tl.constexpr, FLIP: tl.constexpr, INHIBIT: tl.constexpr, BIAS: tl.constexpr,
    UNROLL: tl.constexpr, TYPE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KH * KW
    sample, _, _, rows, columns, channels = _place(C, H, W, BLOCK_H, BLOCK_W, BLOCK_C)
    x += sample * xb
    k += sample * kb
    mean = tl.zeros([BLOCK_C], TYPE)
    if INHIBIT:
        for tap in tl.range(TAPS, loop_unroll_factor=UNROLL):
            mean += tl.load(k + channels * kc + tap * kt, mask=channels < C, other=0.0).to(TYPE)
        mean *= tl.load(s + channels, mask=channels < C, other=0.0).to(TYPE) / TAPS
    total = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], TYPE)
    if BIAS:
        total += tl.load(b + channels, mask=channels < C, other=0.0).to(TYPE)[None, :]
    for tap in tl.range(TAPS, loop_unroll_factor=UNROLL):
        place = TAPS - 1 - tap if FLIP else tap
        weight = tl.load(k + channels * kc + place * kt, mask=channels < C, other=0.0).to(TYPE) - mean
        dy, dx = tap // KW - KH // 2, tap % KW - KW // 2
        values = _values(x, rows + dy, columns + dx, channels, C, H, W, xc, xh, xw)
        total += values.to(TYPE) * weight[None, :]
    mask = ((rows < H) & (columns < W))[:, None] & (channels < C)[None, :]
    offsets = (rows * yh + columns * yw)[:, None] + (channels * yc)[None, :]
    tl.store(y + sample * yb + offsets, total.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["H", "W"])
def _correlate_kernel(
    x, g, out, C, H, W, xb, xc, xh, xw, gb, gc, gh, gw,
    KH: tl.constexpr, KW: tl.constexpr, UNROLL: tl.constexpr, TYPE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KH * KW
    sample, tile, tiles, rows, columns, channels = _place(C, H, W, BLOCK_H, BLOCK_W, BLOCK_C)
    x += sample * xb
    gradient = _values(g + sample * gb, rows, columns, channels, C, H, W, gc, gh, gw).to(TYPE)
    out += (sample * tiles + tile) * TAPS * C
    for tap in tl.range(TAPS, loop_unroll_factor=UNROLL):
        dy, dx = tap // KW - KH // 2, tap % KW - KW // 2
        values = _values(x, rows + dy, columns + dx, channels, C, H, W, xc, xh, xw)
        tl.store(out + tap * C + channels, tl.sum(values.to(TYPE) * gradient, axis=0), mask=channels < C)


def launch_convolve(
    x: Tensor, kernel: Tensor, strength: Tensor | None, bias: Tensor | None, flip: bool
) -> Tensor:
    """Convolve every channel of every sample with its own kernel.

    Args:
        x: B C H W.
        kernel: B C KH KW, of any floating dtype; KH and KW are odd.
        strength: λ, C: λ times the mean of a kernel is subtracted from its taps; None for none.
        bias: C, or None.
        flip: take the taps in reverse order.

    Returns:
        B C H W, in the dtype and layout of `x`.
    """
    y, taps = empty_map(x), kernel.flatten(2)
    strength, bias = (None if each is None else each.contiguous() for each in (strength, bias))
    if triton_rows.walks(x, *kernel.shape[2:]):
        triton_rows.convolve(x, taps, strength, bias, flip, y)
        return y
    grid, options = _launch(x, kernel.shape[2], kernel.shape[3], "convolve")
    with torch.cuda.device_of(x):
        _convolve_kernel[grid](
            x, taps, taps if strength is None else strength, taps if bias is None else bias, y,
            *x.shape[1:], *x.stride(), *taps.stride(), *y.stride(),
            FLIP=flip, INHIBIT=strength is not None, BIAS=bias is not None, **options,
        )  # fmt: skip
    return y


convolve = custom_op("atconv::convolve", launch_convolve, mutates_args=())
"""`launch_convolve` as an operator of torch's: with gradients, and known to compilers."""


@custom_op("atconv::correlate", mutates_args=())
def correlate(x: Tensor, gradient: Tensor, rows: int, columns: int) -> Tensor:
    """Products of two maps B C H W at rows × columns offsets, summed over positions.

    Returns:
        B C rows columns in float32, or float64 for float64; channels lie together, as in the kernels that
        are generated.
    """
    batch, channels = x.shape[:2]
    if triton_rows.walks(x, rows, columns):
        partial = triton_rows.correlate(x, gradient)
    else:
        grid, options = _launch(x, rows, columns, "correlate")
        tiles = grid[0] // (batch * triton.cdiv(channels, options["BLOCK_C"]))
        partial = torch.empty(batch, tiles, rows * columns, channels, dtype=sum_dtype(x), device=x.device)
        with torch.cuda.device_of(x):
            _correlate_kernel[grid](
                x, gradient, partial, *x.shape[1:], *x.stride(), *gradient.stride(), **options
            )
    taps = partial.sum(1) if partial.shape[1] > 1 else partial.squeeze(1)
    return taps.transpose(1, 2).unflatten(2, (rows, columns))


def _launch(x: Tensor, rows: int, columns: int, program: str) -> tuple[tuple[int], dict[str, Any]]:
    """The grid of programs that covers a map B C H W with kernels of rows × columns, and their constants."""
    tuning, (batch, channels, height, width) = TUNING[program], x.shape
    block_h, block_w, block_c = _tile(x, tuning.values)
    tiles = triton.cdiv(height, block_h) * triton.cdiv(width, block_w)
    by_rows = columns if columns <= _UNROLLED_ROW else 1
    return (batch * tiles * triton.cdiv(channels, block_c),), {
        "KH": rows,
        "KW": columns,
        "UNROLL": rows * columns if rows * columns <= _UNROLLED else by_rows,
        "TYPE": sum_type(x),
        "BLOCK_H": block_h,
        "BLOCK_W": block_w,
        "BLOCK_C": block_c,
        "num_warps": tuning.warps,
    }


def _tile(x: Tensor, values: int) -> tuple[int, int, int]:
    """Rows, columns and channels of a tile.

    Few shapes, since each is compiled: 8 × 8 positions of a channels-last map, whose channels lie along
    memory; else as wide as the map's rows, and channels to fill it. A map of one row has tiles of one row.
    """
    height, width = x.shape[2:]
    if lies_channels_last(x):
        block_c = tile_channels(x.shape[1])
        block_w = values // block_c if height == 1 else 8
        return values // (block_c * block_w), block_w, block_c
    if height == 1:
        block_h, block_w = 1, 64 if width <= 64 else 256
    else:
        block_w = next((w for w in (8, 16) if w >= width), 64)
        block_h = min(block_w, 16)
    return block_h, block_w, values // (block_h * block_w)


def tile_channels(channels: int) -> int:
    """Channels of a tile where they lie along memory: widths such as 40, 72 or 96 fill parts of 64 badly."""
    return 64 if channels % 64 == 0 else 32


def empty_map(x: Tensor) -> Tensor:
    """For a map of the shape, dtype and layout of `x`."""
    layout = torch.channels_last if lies_channels_last(x) else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype that values of `x` are summed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def sum_type(x: Tensor) -> Any:
    """`sum_dtype` as kernels take it."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


@convolve.register_fake
def _(x: Tensor, kernel: Tensor, strength: Tensor | None, bias: Tensor | None, flip: bool) -> Tensor:
    return empty_map(x)


@correlate.register_fake
def _(x: Tensor, gradient: Tensor, rows: int, columns: int) -> Tensor:
    taps = torch.empty(x.shape[0], rows * columns, x.shape[1], dtype=sum_dtype(x), device=x.device)
    return taps.transpose(1, 2).unflatten(2, (rows, columns))


def _save_convolve(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, strength, bias, ctx.flip = inputs
    ctx.save_for_backward(x, kernel, strength)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _convolve_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, kernel, strength = ctx.saved_tensors
    of_x = of_kernel = of_strength = of_bias = None
    gradient = addressable(gradient)
    if ctx.needs_input_grad[0]:
        of_x = convolve(gradient, kernel, strength, None, not ctx.flip).to(x.dtype)
    if ctx.needs_input_grad[3]:
        of_bias = gradient.sum((0, 2, 3), dtype=sum_dtype(gradient)).to(ctx.bias_dtype)
    if any(ctx.needs_input_grad[1:3]):
        of_kernel = correlate(x, gradient, kernel.shape[2], kernel.shape[3])
        if ctx.flip:
            of_kernel = of_kernel.flip(2, 3)
        if strength is not None:
            sums, means = of_kernel.sum((2, 3)), kernel.mean((2, 3), dtype=of_kernel.dtype)
            of_strength = -(sums * means).sum(0).to(strength.dtype)
            share = strength.to(of_kernel.dtype) / (kernel.shape[2] * kernel.shape[3])
            of_kernel = torch.addcmul(of_kernel, sums[..., None, None], share[:, None, None], value=-1)
        of_kernel = of_kernel.to(kernel.dtype)
    return of_x, of_kernel, of_strength, of_bias, None


def _save_correlate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _correlate_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, other = map(addressable, ctx.saved_tensors)
    of_x = convolve(other, gradient, None, None, True).to(x.dtype) if ctx.needs_input_grad[0] else None
    of_other = convolve(x, gradient, None, None, False).to(other.dtype) if ctx.needs_input_grad[1] else None
    return of_x, of_other, None, None


register_autograd(convolve, _convolve_gradients, setup_context=_save_convolve)
register_autograd(correlate, _correlate_gradients, setup_context=_save_correlate)
