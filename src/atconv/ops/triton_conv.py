"""Triton kernels of the dynamic depthwise convolution, with and without lateral inhibition.

K × K taps for each sample and channel, shared by all positions. Two programs:

    convolve     y[b,c,p] = Σ_δ k̂[b,c,δ] · x[b,c,p+δ]       k̂ = k − λ·mean(k), made as k is loaded
    correlate    t[b,c,δ] = Σ_p g[b,c,p] · x[b,c,p+δ]        one sum for each tile, then over tiles

The gradient of the map is `convolve` with the taps in reverse order, that of the taps is `correlate`, and
both have each other as gradients: all orders of derivatives run on the two.

All read tensors by their strides: channels-first, channels-last, tokens B N C as they lie, slices. A program
handles a tile of positions and channels; neighbors of a tile come from the cache. Sums are in float32
(float64 for float64), in an order that never changes: results are equal bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, register_autograd, register_vmap

__all__ = ["convolve", "correlate"]

_UNROLLED = 7  # kernel sizes up to this one are written out tap by tap


@triton.jit
def _positions(tile, W, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Rows and columns of the positions of a tile, flat."""
    tiles = tl.cdiv(W, BLOCK_W)
    position = tl.arange(0, BLOCK_H * BLOCK_W)
    return (tile // tiles) * BLOCK_H + position // BLOCK_W, (tile % tiles) * BLOCK_W + position % BLOCK_W


@triton.jit
def _values(x, rows, columns, channels, C, H, W, sc, sh, sw):
    """Values of a map at positions × channels, zero outside of it."""
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    offsets = (rows * sh + columns * sw)[:, None] + (channels * sc)[None, :]
    return tl.load(x + offsets, mask=inside[:, None] & (channels < C)[None, :], other=0.0)


@triton.jit
def _convolve_kernel(
    x, k, s, y, C, H, W, xb, xc, xh, xw, kb, kc, kt, yb, yc, yh, yw,
    K: tl.constexpr, FLIP: tl.constexpr, INHIBIT: tl.constexpr, UNROLL: tl.constexpr, TYPE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = K * K
    parts = tl.cdiv(C, BLOCK_C)
    tiles = tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    program = tl.program_id(0)
    channels = (program % parts) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows, columns = _positions((program // parts) % tiles, W, BLOCK_H, BLOCK_W)
    sample = (program // parts // tiles).to(tl.int64)
    x += sample * xb
    k += sample * kb
    mean = tl.zeros([BLOCK_C], TYPE)
    if INHIBIT:
        for tap in tl.range(TAPS, loop_unroll_factor=UNROLL):
            mean += tl.load(k + channels * kc + tap * kt, mask=channels < C, other=0.0).to(TYPE)
        mean *= tl.load(s + channels, mask=channels < C, other=0.0).to(TYPE) / TAPS
    total = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], TYPE)
    for tap in tl.range(TAPS, loop_unroll_factor=UNROLL):
        place = TAPS - 1 - tap if FLIP else tap
        weight = tl.load(k + channels * kc + place * kt, mask=channels < C, other=0.0).to(TYPE) - mean
        dy, dx = tap // K - K // 2, tap % K - K // 2
        values = _values(x, rows + dy, columns + dx, channels, C, H, W, xc, xh, xw)
        total += values.to(TYPE) * weight[None, :]
    mask = ((rows < H) & (columns < W))[:, None] & (channels < C)[None, :]
    offsets = (rows * yh + columns * yw)[:, None] + (channels * yc)[None, :]
    tl.store(y + sample * yb + offsets, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _correlate_kernel(
    x, g, out, C, H, W, xb, xc, xh, xw, gb, gc, gh, gw,
    K: tl.constexpr, UNROLL: tl.constexpr, TYPE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = K * K
    parts = tl.cdiv(C, BLOCK_C)
    tiles = tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    program = tl.program_id(0)
    channels = (program % parts) * BLOCK_C + tl.arange(0, BLOCK_C)
    tile = (program // parts) % tiles
    rows, columns = _positions(tile, W, BLOCK_H, BLOCK_W)
    sample = (program // parts // tiles).to(tl.int64)
    x += sample * xb
    gradient = _values(g + sample * gb, rows, columns, channels, C, H, W, gc, gh, gw).to(TYPE)
    out += (sample * tiles + tile) * TAPS * C
    for tap in tl.range(TAPS, loop_unroll_factor=UNROLL):
        dy, dx = tap // K - K // 2, tap % K - K // 2
        values = _values(x, rows + dy, columns + dx, channels, C, H, W, xc, xh, xw)
        tl.store(out + tap * C + channels, tl.sum(values.to(TYPE) * gradient, axis=0), mask=channels < C)


class _Tile(NamedTuple):
    """Positions and channels of one program. Powers of two."""

    height: int
    width: int
    channels: int

    def programs(self, x: Tensor) -> int:
        """How many cover a map B C H W."""
        return x.shape[0] * self.positions(x) * triton.cdiv(x.shape[1], self.channels)

    def positions(self, x: Tensor) -> int:
        """Tiles of one channel."""
        return triton.cdiv(x.shape[2], self.height) * triton.cdiv(x.shape[3], self.width)

    def blocks(self) -> dict[str, int]:
        return {"BLOCK_H": self.height, "BLOCK_W": self.width, "BLOCK_C": self.channels}


def _tile(x: Tensor, values: int) -> _Tile:
    """A tile of at most so many values, whose longest side lies along memory."""
    if _channels_last(x):
        channels = _up_to(64, x.shape[1])
        width = _up_to(16, x.shape[3])
    else:
        channels, width = 1, _up_to(64, x.shape[3])
    return _Tile(_up_to(max(1, values // (channels * width)), x.shape[2]), width, channels)


def _up_to(limit: int, size: int) -> int:
    """The smallest power of two that is `size` or more, or `limit`. Compares alone, for sizes that are
    symbols."""
    power = 1
    while power < limit and power < size:
        power *= 2
    return power


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.shape[1] > 1


def _options(x: Tensor, size: int, tile: _Tile) -> dict[str, Any]:
    accumulator = tl.float64 if x.dtype == torch.float64 else tl.float32
    unroll = size**2 if size <= _UNROLLED else 1
    return {"K": size, "UNROLL": unroll, "TYPE": accumulator, **tile.blocks()}


def _empty_map(x: Tensor) -> Tensor:
    layout = torch.channels_last if _channels_last(x) else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _empty_taps(x: Tensor, size: int) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty(*x.shape[:2], size, size, dtype=dtype, device=x.device)


@custom_op("atconv::convolve", mutates_args=())
def convolve(x: Tensor, kernel: Tensor, strength: Tensor | None, flip: bool) -> Tensor:
    """Convolve every channel of every sample with its own kernel.

    Args:
        x: B C H W.
        kernel: B C K K, of any floating dtype.
        strength: λ, C: λ times the mean of a kernel is subtracted from its taps; None for none.
        flip: take the taps in reverse order.

    Returns:
        B C H W, in the dtype and layout of `x`.
    """
    y, taps = _empty_map(x), kernel.flatten(2)
    size, tile = kernel.shape[-1], _tile(x, 4096)
    strengths = taps if strength is None else strength.contiguous()
    _convolve_kernel[(tile.programs(x),)](
        x, taps, strengths, y, *x.shape[1:], *x.stride(), *taps.stride(), *y.stride(),
        FLIP=flip, INHIBIT=strength is not None, **_options(x, size, tile),
    )  # fmt: skip
    return y


@convolve.register_fake
def _(x: Tensor, kernel: Tensor, strength: Tensor | None, flip: bool) -> Tensor:
    return _empty_map(x)


@custom_op("atconv::correlate", mutates_args=())
def correlate(x: Tensor, gradient: Tensor, size: int) -> Tensor:
    """Products of two maps B C H W at size × size offsets, summed over positions.

    Returns:
        B C size size in float32, or float64 for float64.
    """
    tile = _tile(x, 8192)
    shape = (x.shape[0], tile.positions(x), size**2, x.shape[1])
    partial = torch.empty(shape, dtype=_empty_taps(x, size).dtype, device=x.device)
    _correlate_kernel[(tile.programs(x),)](
        x, gradient, partial, *x.shape[1:], *x.stride(), *gradient.stride(), **_options(x, size, tile)
    )
    taps = partial.sum(1) if shape[1] > 1 else partial[:, 0]
    return taps.transpose(1, 2).reshape(*x.shape[:2], size, size).contiguous()


@correlate.register_fake
def _(x: Tensor, gradient: Tensor, size: int) -> Tensor:
    return _empty_taps(x, size)


def _save_convolve(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, strength, ctx.flip = inputs
    ctx.save_for_backward(x, kernel, strength)


def _convolve_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, kernel, strength = ctx.saved_tensors
    of_x = of_kernel = of_strength = None
    if ctx.needs_input_grad[0]:
        of_x = convolve(gradient, kernel, strength, not ctx.flip).to(x.dtype)
    if any(ctx.needs_input_grad[1:3]):
        of_kernel = correlate(x, gradient, kernel.shape[-1])
        if ctx.flip:
            of_kernel = of_kernel.flip(2, 3)
        if strength is not None:
            means = kernel.mean((2, 3)).to(of_kernel.dtype)
            of_strength = -(of_kernel.sum((2, 3)) * means).sum(0).to(strength.dtype)
            of_kernel = of_kernel - strength.to(of_kernel.dtype)[:, None, None] * of_kernel.mean((2, 3), True)
        of_kernel = of_kernel.to(kernel.dtype)
    return of_x, of_kernel, of_strength, None


def _save_correlate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _correlate_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, other = ctx.saved_tensors
    of_x = convolve(other, gradient, None, True).to(x.dtype) if ctx.needs_input_grad[0] else None
    of_other = convolve(x, gradient, None, False).to(other.dtype) if ctx.needs_input_grad[1] else None
    return of_x, of_other, None


def _convolve_vmap(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, kernel: Tensor, strength: Tensor | None, flip: bool
) -> tuple[Tensor, int]:
    """A dimension more is more samples. Strengths that differ along it are applied to the kernels before."""
    maps, kernels = (_leading(t, dim, info.batch_size) for t, dim in zip((x, kernel), in_dims, strict=False))
    if strength is not None and in_dims[2] is not None:
        strengths = strength.movedim(in_dims[2], 0)[:, None, :, None, None]
        kernels, strength = kernels - strengths * kernels.mean((3, 4), keepdim=True), None
    y = convolve(maps.flatten(0, 1), kernels.flatten(0, 1), strength, flip)
    return y.unflatten(0, maps.shape[:2]), 0


def _correlate_vmap(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, gradient: Tensor, size: int
) -> tuple[Tensor, int]:
    maps, others = (_leading(t, dim, info.batch_size) for t, dim in zip((x, gradient), in_dims, strict=False))
    taps = correlate(maps.flatten(0, 1), others.flatten(0, 1), size)
    return taps.unflatten(0, maps.shape[:2]), 0


def _leading(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The dimension that vmap runs over, in front; made where the tensor has none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


register_autograd(convolve, _convolve_gradients, setup_context=_save_convolve)
register_autograd(correlate, _correlate_gradients, setup_context=_save_correlate)
register_vmap(convolve, _convolve_vmap)
register_vmap(correlate, _correlate_vmap)
