"""Triton kernels of what is computed from the channels of one position, for rows … K that lie together.

    gated product    p = GELU(gate)·value and 1/√(Σ_c p² / n + eps) in one pass, both gradients in another
    layer norm       (x − mean_c x)/√(var_c x + eps)·w + b in one pass, that of x and sums for w, b in another

A program holds whole rows in registers: their sums cost no second pass. Gradients compute them again, so that
inputs alone are kept. Sums are in float32 (float64 for float64), in an order that never changes.
"""

# Arguments of kernels have no types: Triton compiles them for those they are launched with.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, register_autograd

from atconv.ops.triton_conv import sum_dtype, sum_type

__all__ = [
    "gated_product",
    "gated_product_gradients",
    "launch_gated_product",
    "launch_layer_norm",
    "layer_norm",
    "layer_norm_gradients",
    "takes",
]

_WIDEST = 8192  # channels, of which 341 to 2048 are in AttNets
_VALUES = 2048  # of a program, in rows of up to as many: 16 for each thread of four warps
_PROGRAMS = 512  # that share the rows of a sum over rows, a few for each part of a GPU


def takes(rows: Tensor) -> bool:
    """Whether the kernels take rows … K of a map."""
    return rows.is_contiguous() and rows.shape[-1] <= _WIDEST


@triton.jit
def _place(block, ROWS, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows of a block, places of their values in memory, and which of both there are."""
    rows = (block * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    channels = tl.arange(0, BLOCK_K)
    inside = (rows < ROWS)[:, None] & (channels < K)[None, :]
    return rows, rows < ROWS, rows[:, None] * K + channels[None, :], inside


@triton.jit
def _normal(x):
    """Share of a normal distribution below x: GELU is x times it."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["ROWS"])
def _gate_kernel(
    gate, value, product, inverse, ROWS, COUNT: tl.constexpr,
    K: tl.constexpr, EPS: tl.constexpr, TYPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows, there, places, inside = _place(tl.program_id(0), ROWS, K, BLOCK_R, BLOCK_K)
    g = tl.load(gate + places, mask=inside, other=0.0).to(TYPE)
    v = tl.load(value + places, mask=inside, other=0.0).to(TYPE)
    p = (g * _normal(g) * v).to(product.dtype.element_ty)
    tl.store(product + places, p, mask=inside)
    mean = tl.sum(p.to(TYPE) * p.to(TYPE), axis=1) / COUNT
    tl.store(inverse + rows, tl.rsqrt(mean + EPS).to(inverse.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["ROWS"])
def _gate_gradients_kernel(
    gate, value, of_product, of_inverse, of_gate, of_value, ROWS, COUNT: tl.constexpr,
    K: tl.constexpr, EPS: tl.constexpr, TYPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows, there, places, inside = _place(tl.program_id(0), ROWS, K, BLOCK_R, BLOCK_K)
    g = tl.load(gate + places, mask=inside, other=0.0).to(TYPE)
    v = tl.load(value + places, mask=inside, other=0.0).to(TYPE)
    d = tl.load(of_product + places, mask=inside, other=0.0).to(TYPE)
    below = _normal(g)
    gelu = g * below
    p = gelu * v
    inverse = tl.rsqrt(tl.sum(p * p, axis=1) / COUNT + EPS)
    share = tl.load(of_inverse + rows, mask=there, other=0.0).to(TYPE) * inverse * inverse * inverse / COUNT
    d -= p * share[:, None]
    slope = below + g * 0.3989422804014327 * tl.exp(-0.5 * g * g)
    tl.store(of_gate + places, (d * v * slope).to(of_gate.dtype.element_ty), mask=inside)
    tl.store(of_value + places, (d * gelu).to(of_value.dtype.element_ty), mask=inside)


@triton.jit
def _normalized(x, inside, K: tl.constexpr, EPS: tl.constexpr):
    """(x − mean)/√(var + eps), zero outside, and 1/√(var + eps)."""
    mean = tl.sum(x, axis=1) / K
    x = tl.where(inside, x - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / K + EPS)
    return x * inverse[:, None], inverse


@triton.jit(do_not_specialize=["ROWS"])
def _norm_kernel(
    x, weight, bias, y, ROWS, AFFINE: tl.constexpr,
    K: tl.constexpr, EPS: tl.constexpr, TYPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    _, _, places, inside = _place(tl.program_id(0), ROWS, K, BLOCK_R, BLOCK_K)
    values = tl.load(x + places, mask=inside, other=0.0).to(TYPE)
    values, _ = _normalized(values, inside, K, EPS)
    if AFFINE:
        channels = tl.arange(0, BLOCK_K)
        w = tl.load(weight + channels, mask=channels < K, other=0.0).to(TYPE)
        b = tl.load(bias + channels, mask=channels < K, other=0.0).to(TYPE)
        values = values * w[None, :] + b[None, :]
    tl.store(y + places, values.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["ROWS"])
def _norm_gradients_kernel(
    x, weight, gradient, of_x, sums, ROWS,
    K: tl.constexpr, EPS: tl.constexpr, TYPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    channels = tl.arange(0, BLOCK_K)
    w = tl.load(weight + channels, mask=channels < K, other=0.0).to(TYPE)
    of_weight = tl.zeros([BLOCK_R, BLOCK_K], TYPE)
    of_bias = tl.zeros([BLOCK_R, BLOCK_K], TYPE)
    for block in range(tl.program_id(0), tl.cdiv(ROWS, BLOCK_R), tl.num_programs(0)):
        _, _, places, inside = _place(block, ROWS, K, BLOCK_R, BLOCK_K)
        values = tl.load(x + places, mask=inside, other=0.0).to(TYPE)
        values, inverse = _normalized(values, inside, K, EPS)
        d = tl.load(gradient + places, mask=inside, other=0.0).to(TYPE)
        of_weight += d * values
        of_bias += d
        d *= w[None, :]
        mean, along = tl.sum(d, axis=1) / K, tl.sum(d * values, axis=1) / K
        d = (d - mean[:, None] - values * along[:, None]) * inverse[:, None]
        tl.store(of_x + places, d.to(of_x.dtype.element_ty), mask=inside)
    sums += tl.program_id(0) * 2 * K + channels
    tl.store(sums, tl.sum(of_weight, axis=0), mask=channels < K)
    tl.store(sums + K, tl.sum(of_bias, axis=0), mask=channels < K)


def launch_gated_product(gate: Tensor, value: Tensor, eps: float, count: int) -> tuple[Tensor, Tensor]:
    """GELU(gate)·value of rows … K, and 1/√(sum of a row's squares / count + eps), … 1."""
    product, inverse = _empty_product(gate)
    grid, options = _launch(gate, eps)
    with torch.cuda.device_of(gate):
        _gate_kernel[grid](gate.contiguous(), value.contiguous(), product, inverse, COUNT=count, **options)
    return product, inverse


gated_product = custom_op("atconv::gated_product", launch_gated_product, mutates_args=())
"""`launch_gated_product` as an operator of torch's: with gradients, and known to compilers."""


@custom_op("atconv::gated_product_gradients", mutates_args=())
def gated_product_gradients(
    gate: Tensor, value: Tensor, of_product: Tensor, of_inverse: Tensor, eps: float, count: int
) -> tuple[Tensor, Tensor]:
    """Gradients of gate and value, given those of both results."""
    tensors = [t.contiguous() for t in (gate, value, of_product, of_inverse)]
    of_gate, of_value = torch.empty_like(tensors[0]), torch.empty_like(tensors[1])
    grid, options = _launch(gate, eps)
    with torch.cuda.device_of(gate):
        _gate_gradients_kernel[grid](*tensors, of_gate, of_value, COUNT=count, **options)
    return of_gate, of_value


def launch_layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """Layer norm of rows … K with weight and bias K, or without both, in this dtype."""
    y = x.new_empty(x.shape, dtype=dtype)
    grid, options = _launch(x, eps)
    affine = [x if t is None else t.contiguous() for t in (weight, bias)]
    with torch.cuda.device_of(x):
        _norm_kernel[grid](x.contiguous(), *affine, y, AFFINE=weight is not None, **options)
    return y


layer_norm = custom_op("atconv::layer_norm", launch_layer_norm, mutates_args=())
"""`launch_layer_norm` as an operator of torch's: with gradients, and known to compilers."""


@custom_op("atconv::layer_norm_gradients", mutates_args=())
def layer_norm_gradients(x: Tensor, weight: Tensor, gradient: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradient of x, and those of weight and bias as 2 K in the dtype of sums."""
    tensors = [t.contiguous() for t in (x, weight, gradient)]
    of_x = torch.empty_like(tensors[0])
    (blocks,), options = _launch(x, eps)
    programs = min(blocks, _PROGRAMS)
    sums = x.new_empty(programs, 2, x.shape[-1], dtype=sum_dtype(x))
    with torch.cuda.device_of(x):
        _norm_gradients_kernel[(programs,)](*tensors, of_x, sums, **options)
    return of_x, sums.sum(0)


def _launch(rows: Tensor, eps: float) -> tuple[tuple[int], dict[str, Any]]:
    """The grid of programs that covers rows … K, and their options."""
    channels = rows.shape[-1]
    count = rows.numel() // channels
    block_k = triton.next_power_of_2(channels)
    block_r = max(1, _VALUES // block_k)
    return (triton.cdiv(count, block_r),), {
        "ROWS": count,
        "K": channels,
        "EPS": eps,
        "TYPE": sum_type(rows),
        "BLOCK_R": block_r,
        "BLOCK_K": block_k,
        "num_warps": max(4, block_k // 512),
    }


def _empty_product(gate: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(*gate.shape[:-1], 1)


@gated_product.register_fake
def _(gate: Tensor, value: Tensor, eps: float, count: int) -> tuple[Tensor, Tensor]:
    return _empty_product(gate)


@gated_product_gradients.register_fake
def _(
    gate: Tensor, value: Tensor, of_product: Tensor, of_inverse: Tensor, eps: float, count: int
) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), value.new_empty(value.shape)


@layer_norm.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


@layer_norm_gradients.register_fake
def _(x: Tensor, weight: Tensor, gradient: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(2, x.shape[-1], dtype=sum_dtype(x))


def _save_gated_product(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps, ctx.count = inputs
    ctx.save_for_backward(*tensors)


def _gated_product_gradients(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    tensors, eps, count = ctx.saved_tensors, ctx.eps, ctx.count
    if torch.is_grad_enabled():  # a second derivative is wanted

        def plain(gate: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            product = F.gelu(gate) * value
            return product, torch.rsqrt(product.square().sum(-1, keepdim=True) / count + eps)

        return *_by_pytorch(plain, tensors, gradients), None, None
    return *gated_product_gradients(*tensors, *gradients, eps, count), None, None


def _save_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.dtype = inputs
    ctx.save_for_backward(*tensors)


def _layer_norm_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight, bias), eps = ctx.saved_tensors, ctx.eps
    if torch.is_grad_enabled():

        def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            dtype = sum_dtype(x)
            y = F.layer_norm(x.to(dtype), x.shape[-1:], weight.to(dtype), bias.to(dtype), eps)
            return y.to(ctx.dtype)

        return *_by_pytorch(plain, (x, weight, bias), (gradient,)), None, None
    of_x, (of_weight, of_bias) = layer_norm_gradients(x, weight, gradient, eps)
    return of_x, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None


def _by_pytorch(
    function: Callable[..., Any], inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of a function that can be differentiated again."""
    wanted = [t for t in inputs if t.requires_grad]
    made = iter(torch.autograd.grad(function(*inputs), wanted, gradients, create_graph=True))
    return [next(made) if t.requires_grad else None for t in inputs]


register_autograd(layer_norm, _layer_norm_gradients, setup_context=_save_layer_norm)
register_autograd(gated_product, _gated_product_gradients, setup_context=_save_gated_product)
