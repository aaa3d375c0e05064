"""Layer norm over the channels of maps, in the form that is fast where it runs."""

from __future__ import annotations

import timm.layers
import torch
import torch.fx
import torch.nn.functional as F
from timm.layers.fast_norm import fast_layer_norm
from torch import Tensor

from atconv.ops.backend import autocast_dtype, is_recorded, uses_untried_triton
from atconv.ops.layout import from_rows, to_rows
from atconv.ops.tracing import is_symbolic

__all__ = ["LayerNorm2d", "normalize_channels"]
torch.fx.wrap("normalize_channels")  # a node of torch.fx's graphs


class LayerNorm2d(timm.layers.LayerNorm2d):
    """timm's, with `normalize_channels`. B C H W → same."""

    def forward(self, x: Tensor) -> Tensor:
        shape, weight, bias = self.normalized_shape, self.weight, self.bias
        return normalize_channels(x, shape, weight, bias, self.eps, self._fast_norm)  # type: ignore[arg-type]


def normalize_channels(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float, fast: bool
) -> Tensor:
    """(x − mean)/√(var + eps)·weight + bias over the channels of a map B C H W; `shape` holds C.

    `fast` is timm's: under autocast half precision in place of float32. Triton's kernel sums in float32, and
    gives what the projections behind it take.
    """
    rows = to_rows(x)
    if not torch.jit.is_scripting():
        by_triton = not fast and _triton_computes(rows, weight, bias)
        if by_triton:
            return from_rows(_by_triton(rows, weight, bias, eps))
    if fast:
        return from_rows(fast_layer_norm(rows, shape, weight, bias, eps))
    return from_rows(F.layer_norm(rows, shape, weight, bias, eps))


def _triton_computes(rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    if is_symbolic() or not uses_untried_triton(rows):  # a compiler fuses what is plain
        return False
    from atconv.ops import triton_channels  # Triton is not installed everywhere

    if weight is None and bias is None:  # those of folded models, which are not trained
        return not is_recorded(rows) and triton_channels.takes(rows)
    return weight is not None and bias is not None and triton_channels.takes(rows)


def _by_triton(rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    from atconv.ops import triton_channels

    recorded = is_recorded(rows, weight, bias)
    compute = triton_channels.layer_norm if recorded else triton_channels.launch_layer_norm
    y: Tensor = compute(rows, weight, bias, eps, autocast_dtype(rows))
    return y
