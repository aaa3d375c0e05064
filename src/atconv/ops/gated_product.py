"""GELU(gate)·value, RMS-normalized over channels and projected, in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv.ops.backend import is_recorded, uses_untried_triton
from atconv.ops.layout import from_rows, to_rows
from atconv.ops.static_conv import pointwise_conv
from atconv.ops.tracing import is_symbolic

__all__ = ["GELU", "gated_product", "project_gated"]


class GELU(nn.GELU):
    """Exact GELU of maps. B C H W → same."""

    def forward(self, x: Tensor) -> Tensor:
        if is_symbolic():
            return F.gelu(x, approximate=self.approximate)
        return from_rows(F.gelu(to_rows(x), approximate=self.approximate))


def project_gated(
    gate: Tensor, value: Tensor, eps: float, weight: Tensor, bias: Tensor | None, count: int | None = None
) -> Tensor:
    """1×1 projection of GELU(gate)·value, which is RMS-normalized over channels.

    Args:
        gate, value: B K H W.
        eps: of the norm.
        weight, bias: C K 1 1 and C; the norm's own weight is a factor of `weight`.
        count: channels that the norm divides by; default: K. Further ones are zero.

    Returns:
        map, B C H W.
    """
    product, inverse = gated_product(gate, value, eps, count)
    if product.dtype == torch.float16:  # a projection of large products would leave its range
        return pointwise_conv(product * inverse, weight, bias)
    # The norm divides a position by one number, and behind the projection there are fewer channels.
    projected = pointwise_conv(product, weight, None)
    if bias is None:
        return projected * inverse
    bias = bias.to(projected)[:, None, None]
    if is_symbolic():  # Core ML has no addcmul
        return projected * inverse + bias
    return torch.addcmul(bias, projected, inverse)


def gated_product(gate: Tensor, value: Tensor, eps: float, count: int | None = None) -> tuple[Tensor, Tensor]:
    """GELU(gate)·value, B C H W, and 1/√(sum of its squares over channels / count + eps), B 1 H W."""
    channels = gate.shape[1] if count is None else count
    if not torch.jit.is_scripting():
        eager = not is_symbolic()  # a compiler fuses what is plain
        if eager:
            return _by_rows(gate, value, eps, channels)
    product = F.gelu(gate) * value
    return product, _inverse_norm(product, eps, channels, 1)


def _by_rows(gate: Tensor, value: Tensor, eps: float, count: int) -> tuple[Tensor, Tensor]:
    rows = to_rows(gate), to_rows(value)
    multiply: Any = _GatedProduct.apply if torch.is_grad_enabled() else _gated_product
    if uses_untried_triton(gate) and gate.dtype == value.dtype:
        from atconv.ops import triton_channels  # Triton is not installed everywhere

        if all(map(triton_channels.takes, rows)):
            recorded = is_recorded(gate, value)
            multiply = triton_channels.gated_product if recorded else triton_channels.launch_gated_product
    product, inverse = multiply(*rows, eps, count)
    return from_rows(product), from_rows(inverse)


def _gated_product(gate: Tensor, value: Tensor, eps: float, count: int) -> tuple[Tensor, Tensor]:
    product = F.gelu(gate) * value if torch.is_grad_enabled() else F.gelu(gate).mul_(value)
    return product, _inverse_norm(product, eps, count, -1)


def _inverse_norm(product: Tensor, eps: float, count: int, dim: int) -> Tensor:
    # float16 is too small for the norm of many products; in bfloat16 it is summed in float32 anyway
    dtype = torch.float32 if product.dtype == torch.float16 else None
    norm = torch.linalg.vector_norm(product, dim=dim, keepdim=True, dtype=dtype)
    squares = norm.to(torch.promote_types(norm.dtype, torch.float32)).square()
    return torch.rsqrt(squares / count + eps).to(product.dtype)


class _GatedProduct(torch.autograd.Function):
    """`_gated_product` that keeps four maps fewer for its gradient and passes over memory half as often.

    All that it keeps is input or output, and its backward is made of differentiable operations, so it
    can be differentiated twice.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, value: Tensor, eps: float, count: int) -> tuple[Tensor, Tensor]:
        return _gated_product(gate, value, eps, count)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.count = inputs[3]
        ctx.save_for_backward(*inputs[:2], *output)
        ctx.save_for_forward(*inputs[:2], *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gate, value, product, inverse = ctx.saved_tensors
        grad_product, grad_inverse = grads
        of_squares = -inverse * inverse * inverse * grad_inverse / ctx.count
        grad = torch.addcmul(grad_product, product, of_squares)
        of_gate = torch.ops.aten.gelu_backward(grad * value, gate)
        # In place where nothing keeps `grad` for a second derivative.
        of_value = grad * F.gelu(gate) if torch.is_grad_enabled() else grad.mul_(F.gelu(gate))
        return of_gate, of_value, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        gate, value, product, inverse = ctx.saved_tensors
        of_gate, of_value, _, _ = tangents
        moved = torch.ops.aten.gelu_backward(of_gate * value, gate) + F.gelu(gate) * of_value
        along = (product * moved).sum(-1, keepdim=True) / ctx.count
        return moved, -inverse * inverse * inverse * along
