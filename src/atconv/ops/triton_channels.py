"""Triton kernels of what is computed from the channels of one position, for rows … K that lie together.

    gated product    p = GELU(gate)·value and 1/√(mean_c p² + eps) in one pass, both gradients in another

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

__all__ = ["gated_product", "gated_product_gradients", "launch_gated_product", "takes"]

_WIDEST = 8192  # channels, of which 341 to 2048 are in AttNets
_VALUES = 2048  # of a program, in rows of up to as many: 16 for each thread of four warps


def takes(rows: Tensor) -> bool:
    """Whether the kernels take rows … K of a map."""
    return rows.is_contiguous() and rows.shape[-1] <= _WIDEST


@triton.jit
def _place(ROWS, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows of this program, places of their values in memory, and which of both there are."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    channels = tl.arange(0, BLOCK_K)
    inside = (rows < ROWS)[:, None] & (channels < K)[None, :]
    return rows, rows < ROWS, rows[:, None] * K + channels[None, :], inside


@triton.jit
def _normal(x):
    """Share of a normal distribution below x: GELU is x times it."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["ROWS"])
def _gate_kernel(
    gate, value, product, inverse, ROWS,
    K: tl.constexpr, EPS: tl.constexpr, TYPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows, there, places, inside = _place(ROWS, K, BLOCK_R, BLOCK_K)
    g = tl.load(gate + places, mask=inside, other=0.0).to(TYPE)
    v = tl.load(value + places, mask=inside, other=0.0).to(TYPE)
    p = (g * _normal(g) * v).to(product.dtype.element_ty)
    tl.store(product + places, p, mask=inside)
    mean = tl.sum(p.to(TYPE) * p.to(TYPE), axis=1) / K
    tl.store(inverse + rows, tl.rsqrt(mean + EPS).to(inverse.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["ROWS"])
def _gate_gradients_kernel(
    gate, value, of_product, of_inverse, of_gate, of_value, ROWS,
    K: tl.constexpr, EPS: tl.constexpr, TYPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows, there, places, inside = _place(ROWS, K, BLOCK_R, BLOCK_K)
    g = tl.load(gate + places, mask=inside, other=0.0).to(TYPE)
    v = tl.load(value + places, mask=inside, other=0.0).to(TYPE)
    d = tl.load(of_product + places, mask=inside, other=0.0).to(TYPE)
    below = _normal(g)
    gelu = g * below
    p = gelu * v
    inverse = tl.rsqrt(tl.sum(p * p, axis=1) / K + EPS)
    share = tl.load(of_inverse + rows, mask=there, other=0.0).to(TYPE) * inverse * inverse * inverse / K
    d -= p * share[:, None]
    slope = below + g * 0.3989422804014327 * tl.exp(-0.5 * g * g)
    tl.store(of_gate + places, (d * v * slope).to(of_gate.dtype.element_ty), mask=inside)
    tl.store(of_value + places, (d * gelu).to(of_value.dtype.element_ty), mask=inside)


def launch_gated_product(gate: Tensor, value: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """GELU(gate)·value of rows … K, and 1/√(mean of a row's squares + eps), … 1."""
    product, inverse = _empty_product(gate)
    grid, options = _launch(gate, eps)
    with torch.cuda.device_of(gate):
        _gate_kernel[grid](gate.contiguous(), value.contiguous(), product, inverse, **options)
    return product, inverse


gated_product = custom_op("atconv::gated_product", launch_gated_product, mutates_args=())
"""`launch_gated_product` as an operator of torch's: with gradients, and known to compilers."""


@custom_op("atconv::gated_product_gradients", mutates_args=())
def gated_product_gradients(
    gate: Tensor, value: Tensor, of_product: Tensor, of_inverse: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of gate and value, given those of both results."""
    tensors = [t.contiguous() for t in (gate, value, of_product, of_inverse)]
    of_gate, of_value = torch.empty_like(tensors[0]), torch.empty_like(tensors[1])
    grid, options = _launch(gate, eps)
    with torch.cuda.device_of(gate):
        _gate_gradients_kernel[grid](*tensors, of_gate, of_value, **options)
    return of_gate, of_value


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
        "TYPE": tl.float64 if rows.dtype == torch.float64 else tl.float32,
        "BLOCK_R": block_r,
        "BLOCK_K": block_k,
        "num_warps": max(4, block_k // 512),
    }


def _empty_product(gate: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(*gate.shape[:-1], 1)


@gated_product.register_fake
def _(gate: Tensor, value: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _empty_product(gate)


@gated_product_gradients.register_fake
def _(
    gate: Tensor, value: Tensor, of_product: Tensor, of_inverse: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), value.new_empty(value.shape)


def _save_gated_product(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _gated_product_gradients(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    tensors, eps = ctx.saved_tensors, ctx.eps
    if torch.is_grad_enabled():  # a second derivative is wanted
        return *_by_pytorch(lambda g, v: _plain_gated_product(g, v, eps), tensors, gradients), None
    return *gated_product_gradients(*tensors, *gradients, eps), None


def _plain_gated_product(gate: Tensor, value: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    product = F.gelu(gate) * value
    return product, torch.rsqrt(product.square().mean(-1, keepdim=True) + eps)


def _by_pytorch(
    function: Callable[..., Any], inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of a function that can be differentiated again."""
    wanted = [t for t in inputs if t.requires_grad]
    made = iter(torch.autograd.grad(function(*inputs), wanted, gradients, create_graph=True))
    return [next(made) if t.requires_grad else None for t in inputs]


register_autograd(gated_product, _gated_product_gradients, setup_context=_save_gated_product)
