"""What a causal operator needs: means over the past, and kernels that change along the sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atconv.ops.tracing import is_symbolic

__all__ = [
    "causal_depthwise_conv1d",
    "chunks_of",
    "memory_decay",
    "running_means",
    "running_weights",
    "sum_dtype",
]


def chunks_of(length: int, chunk: int) -> int:
    """M = ⌈N / chunk⌉, of symbols in the form in which an export compares it."""
    return (length + chunk - 1) // chunk


def sum_dtype(x: Tensor) -> torch.dtype:
    """Of running sums: in half precision they would stand still after some hundred positions."""
    return torch.promote_types(x.dtype, torch.float32)


def memory_decay(bins: int) -> list[float]:
    """How much of a running sum remains after a step, for each of `bins` memories: 1 − 2^−i, and all of the
    last one."""
    return [1 - 2.0**-i for i in range(bins - 1)] + [1.0]


def running_weights(length: int, bins: int, like: Tensor) -> Tensor:
    """Σ_{s ≤ t} β_i^(t−s) of every position t and memory i: bins × length."""
    forgotten = 1 - torch.tensor(memory_decay(bins), dtype=torch.float64)[:, None]
    count = torch.arange(1, length + 1, dtype=torch.float64)
    partial = -torch.expm1(count * torch.log1p(-forgotten)) / forgotten  # (1 − β^count) / (1 − β)
    return torch.where(forgotten > 0, partial, count).to(like)


def running_means(x: Tensor, bins: int, chunk: int) -> Tensor:
    """Means over positions up to every chunk-th, in `bins` memories: B C N → B C n M, M = ⌈N / chunk⌉.

    Memory i weighs a position that lies t − s back by β_i^(t−s).
    """
    # A strict export shows symbols as numbers.
    strict = torch.compiler.is_dynamo_compiling() and torch.compiler.is_exporting()
    means = _by_doubling if isinstance(x.shape[2], int) and not strict else _as_product
    return means(x.to(sum_dtype(x)), bins, chunk).to(x.dtype)


def _by_doubling(x: Tensor, bins: int, chunk: int) -> Tensor:
    """Sums of 2, 4, 8, … positions are combined, as many times as N has binary digits."""
    length = x.shape[2]
    decay = torch.tensor(memory_decay(bins), dtype=torch.float64)[:, None]
    sums = x.unsqueeze(2).expand(-1, -1, bins, -1)
    step = 1
    while step < length:
        sums = sums + (decay**step).to(x) * F.pad(sums[..., :-step], (step, 0))
        step *= 2
    return (sums / running_weights(length, bins, x))[..., ::chunk]


def _as_product(x: Tensor, bins: int, chunk: int) -> Tensor:
    """One product with the weights of all pairs of positions, n × M × N: for export, where N is a symbol."""
    length = x.shape[2]
    position = torch.arange(length, device=x.device)
    begin = chunk * torch.arange(chunks_of(length, chunk), device=x.device)
    back = begin[:, None] - position
    decay = torch.tensor(memory_decay(bins), device=x.device, dtype=x.dtype)[:, None, None]
    weights = torch.where(back >= 0, decay ** back.clamp_min(0).to(x.dtype), 0)
    shares = weights / weights.sum(-1, keepdim=True)
    finite = x.abs() < torch.inf  # and no NaN
    means = torch.matmul(shares, torch.where(finite, x, 0).transpose(1, 2).unsqueeze(1))  # B n M C
    # 0 · NaN is NaN: what is not finite would reach back in the product. It spoils what follows it alone.
    spoiled = (1 - finite.to(x.dtype)).cumsum(2).index_select(2, begin).unsqueeze(2) > 0
    return torch.where(spoiled, torch.nan, means.permute(0, 3, 1, 2))


def causal_depthwise_conv1d(x: Tensor, kernel: Tensor, chunk: int, dilation: int) -> Tensor:
    """Cross-correlate each channel with kernels that change every `chunk` positions and reach back only.

    Args:
        x: B C N.
        kernel: B·M C K with M = ⌈N / chunk⌉, or 1 C K for the same one everywhere.

    Returns:
        B C N.
    """
    size, length = kernel.shape[-1], x.shape[2]
    padded = F.pad(x, ((size - 1) * dilation, 0))
    if _is_known_to_be_one(kernel.shape[0]):
        kernel = kernel.unsqueeze(2)
    else:
        of_chunks = kernel.unflatten(0, (x.shape[0], chunks_of(length, chunk))).transpose(1, 2)
        kernel = _repeat_for_positions(of_chunks, chunk, length)
    taps = [padded[..., i * dilation : i * dilation + length] * kernel[..., i] for i in range(size)]
    return torch.stack(taps).sum(0)


def _is_known_to_be_one(count: int) -> bool:
    """Whether it is 1 in every case: a graph for every length is not asked."""
    if torch.jit.is_tracing() or not is_symbolic():
        return bool(count == 1)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import

    return statically_known_true(count == 1)


def _repeat_for_positions(kernel: Tensor, chunk: int, length: int) -> Tensor:
    """B C M K, a kernel a chunk → B C N K, a kernel a position."""
    if not is_symbolic():
        return kernel.repeat_interleave(chunk, dim=2)[:, :, :length]
    # Where N is a symbol, the slice would ask that chunks fill the sequence as the traced ones do.
    return kernel.index_select(2, torch.arange(length, device=kernel.device) // chunk)
