"""Memory layouts of maps B C H W: channels-last and channels-first, and views between maps and tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from atconv.ops.tracing import is_symbolic

__all__ = [
    "both_ends",
    "channels_last",
    "fast_layout",
    "flatten_positions",
    "from_rows",
    "is_channels_last",
    "lies_channels_last",
    "map_to_tokens",
    "to_rows",
    "tokens_to_map",
]


def is_channels_last(x: Tensor) -> bool:
    """Whether a map lies channels-last and not channels-first as well, as maps of one channel do."""
    if x.ndim != 4:  # a sequence or a volume: their convolutions have one layout
        return False
    # By strides: vmap knows no memory formats. Those of the batch do not matter.
    channels, width = x.shape[1], x.shape[3]
    rows = x.stride(1) == 1 and x.stride(2) == width * channels and x.stride(3) == channels
    return rows and not x.is_contiguous()


def lies_channels_last(x: Tensor) -> bool:
    """Whether the channels of a map lie next to each other, slices and tokens included."""
    return x.stride(1) == 1 and x.shape[1] > 1


def channels_last(x: Tensor) -> Tensor:
    """A map as it is, or a copy in channels-last layout."""
    if is_symbolic():
        return x.contiguous(memory_format=torch.channels_last)
    return from_rows(to_rows(x).contiguous())  # the same, under vmap too


def fast_layout(x: Tensor) -> Tensor:
    """B C H W, on CPUs and GPUs channels-last: norms over channels and 1×1 convolutions are fast there."""
    return channels_last(x) if x.device.type in ("cpu", "cuda") else x


def flatten_positions(x: Tensor) -> Tensor:
    """B C H W → B C N, a view where it can be."""
    if is_channels_last(x):
        # flatten gives one sample a batch stride that hides channels-last from pooling, which then copies.
        return map_to_tokens(x).transpose(1, 2)
    return x.flatten(2)


def tokens_to_map(tokens: Tensor, grid_size: list[int]) -> Tensor:
    """B N C → B C *S, a view."""
    return tokens.transpose(1, 2).unflatten(2, grid_size)


def map_to_tokens(x: Tensor) -> Tensor:
    """B C *S → B N C, a view of channels-last maps."""
    return x.movedim(1, -1).flatten(1, -2)


def both_ends(padding: list[int]) -> list[int]:
    """Padding of each axis, first to last → that of both its ends, as `F.pad` takes it: last axis first."""
    ends: list[int] = []
    for amount in padding[::-1]:
        ends += [amount, amount]
    return ends


def to_rows(x: Tensor) -> Tensor:
    """B C H W → B H W C, a view. Channels-last maps are contiguous so: on a CPU, GELU is twice as fast."""
    return x.permute(0, 2, 3, 1)


def from_rows(x: Tensor) -> Tensor:
    """B H W C → B C H W, a view."""
    return x.permute(0, 3, 1, 2)
