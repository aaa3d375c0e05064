"""Attention as token mixers on maps, B C H W → B C H W. Layers are timm's and torch's where they exist."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import AttentionRope, RotaryEmbeddingCat
from timm.models import register_notrace_module  # their forms depend on the size of the map
from timm.models.pvt_v2 import Attention as PvtAttention
from timm.models.swin_transformer import WindowAttention as SwinAttention
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from atconv.mixers.checking import check_input, check_min, check_odd
from atconv.ops.layout import tokens_to_map

__all__ = [
    "LinearAttention",
    "NeighborhoodAttention",
    "SelfAttention",
    "SpatialReductionAttention",
    "WindowAttention",
    "heads_for",
]


def heads_for(dim: int, head_dim: int = 32, multiple: int = 1) -> int:
    """Number of heads: the channels of a head divide `dim` and lie near `head_dim`, from half to twice of it.
    If no number does, one head.

    Multiples of 4 channels are preferred; multiples of `multiple` are required.
    """
    check_min(head_dim=head_dim)
    near = range(-(-head_dim // 2), 2 * head_dim + 1)
    sizes = [size for size in near if dim % size == 0 and size % multiple == 0] or [dim]
    return dim // min(sizes, key=lambda size: (size % 4 > 0, abs(size - head_dim), -size))


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions.

    Args:
        dim: channels C.
        head_dim: channels of a head, rounded to a divisor of `dim`.
        rope: rotary 2-D position embedding of queries and keys; without it there is no position information.

    Source: ViT (arXiv 2010.11929); rotary embedding, arXiv 2104.09864, over two axes as in EVA-02.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int = 32,
        rope: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim
        heads = heads_for(dim, head_dim, 4 if rope else 1)
        self.attention = AttentionRope(dim, heads, num_prefix_tokens=0)
        if rope and self.attention.head_dim % 4:
            raise ValueError(
                f"rotary positions take heads whose channels 4 divides, {dim} channels make heads of "
                f"{self.attention.head_dim}: choose dims that are multiples of 4"
            )
        self.rope = RotaryEmbeddingCat(self.attention.head_dim, in_pixels=False) if rope else None

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.dim)
        rope = None if self.rope is None else self.rope.get_embed(list(x.shape[2:]))
        return tokens_to_map(self.attention(x.flatten(2).transpose(1, 2), rope), [x.shape[2], x.shape[3]])

    def macs(self, height: int, width: int) -> int:
        positions = height * width
        return 4 * positions * self.dim**2 + 2 * positions**2 * self.dim


@register_notrace_module
class WindowAttention(nn.Module):
    """Self-attention inside windows that do not overlap, with relative position bias.

    Maps that windows do not divide are padded at the right and bottom; padding is never attended to.

    Args:
        dim: channels C.
        window: size of the square windows.
        shift: positions by which the windows move down and right, as in every second block of Swin.
        head_dim: channels of a head, rounded to a divisor of `dim`.

    Source: Swin Transformer (arXiv 2103.14030).
    """

    def __init__(
        self,
        dim: int,
        window: int = 7,
        shift: int = 0,
        head_dim: int = 32,
    ) -> None:
        super().__init__()
        check_min(window=window)
        if not 0 <= shift < window:
            raise ValueError(f"shift must lie in 0 … window − 1 = {window - 1}, got {shift}")
        self.dim, self.window, self.shift = dim, window, shift
        self.attention = SwinAttention(dim, heads_for(dim, head_dim), window_size=window)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.dim)
        height, width = x.shape[2:]
        bottom, right = -height % self.window, -width % self.window
        # An axis that fits into one window is not divided; Swin does not shift it either.
        shifts = [self.shift if length > self.window else 0 for length in (height, width)]
        maps = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, right, 0, bottom))
        # Decided from sizes alone: looking at the regions would fail on meta tensors and break graphs.
        mask = None
        if bottom or right or any(shifts):
            regions = _regions((height, width), (bottom, right), shifts, x.device)
            mask = self._mask(regions, x.dtype)
        if any(shifts):
            maps = maps.roll([-shift for shift in shifts], (1, 2))
        size = self.window, self.window
        windows = window_partition(maps, size).flatten(1, 2)
        mixed = self.attention(windows, mask)
        maps = window_reverse(mixed.unflatten(1, size), size, height + bottom, width + right)
        if any(shifts):
            maps = maps.roll(shifts, (1, 2))
        return maps[:, :height, :width].permute(0, 3, 1, 2)

    def _mask(self, regions: Tensor, dtype: torch.dtype) -> Tensor:
        """0 where two positions of a window may attend to each other, −∞ where not: windows × positions²."""
        region = window_partition(regions[None, :, :, None], (self.window, self.window)).flatten(1)
        apart = region[:, :, None] != region[:, None, :]
        return torch.zeros(apart.shape, dtype=dtype, device=regions.device).masked_fill(apart, -torch.inf)

    def macs(self, height: int, width: int) -> int:
        positions = (height + -height % self.window) * (width + -width % self.window)
        return 4 * positions * self.dim**2 + 2 * positions * self.window**2 * self.dim


@register_notrace_module
class NeighborhoodAttention(nn.Module):
    """Each position attends to the K×K positions around it, with relative position bias.

    At the border the window moves inwards, so that every position attends to equally many. A plain gather: it
    trains on any device, for K² times the memory of a map.

    Args:
        dim: channels C.
        kernel_size: odd K.
        head_dim: channels of a head, rounded to a divisor of `dim`.

    Source: Neighborhood Attention Transformer (arXiv 2204.07143).
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        head_dim: int = 32,
    ) -> None:
        super().__init__()
        check_odd(kernel_size)
        self.dim, self.kernel_size, self.num_heads = dim, kernel_size, heads_for(dim, head_dim)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        offsets = 2 * kernel_size - 1
        self.position_bias = nn.Parameter(torch.zeros(self.num_heads, offsets, offsets))
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.dim)
        q, k, v = self.qkv(x).unflatten(1, (3, self.num_heads, -1)).unbind(1)  # B heads d H W
        rows, row_offsets = self._neighbors(x.shape[2], x.device)
        columns, column_offsets = self._neighbors(x.shape[3], x.device)
        around = (..., rows[:, None, :, None], columns[None, :, None, :])  # H W K K
        bias = self.position_bias[:, row_offsets[:, None, :, None], column_offsets[None, :, None, :]]
        logits = torch.einsum("bndhw,bndhwij->bnhwij", q * q.shape[2] ** -0.5, k[around]) + bias
        weights = logits.flatten(4).softmax(4).view_as(logits)
        mixed = torch.einsum("bnhwij,bndhwij->bndhw", weights, v[around])
        return self.proj(mixed.flatten(1, 2))

    def _neighbors(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions that each position of an axis attends to, and their offsets as indices of the bias."""
        size = min(self.kernel_size, length)
        position = torch.arange(length, device=device)
        first = (position - size // 2).clamp(0, length - size)
        neighbors = first[:, None] + torch.arange(size, device=device)
        return neighbors, neighbors - position[:, None] + self.kernel_size - 1

    def macs(self, height: int, width: int) -> int:
        positions = height * width
        neighbors = min(self.kernel_size, height) * min(self.kernel_size, width)
        return 4 * positions * self.dim**2 + 2 * positions * neighbors * self.dim


@register_notrace_module
class SpatialReductionAttention(nn.Module):
    """Self-attention whose keys and values come from a map that a strided convolution has reduced.

    Args:
        dim: channels C.
        reduction: stride of that convolution. Smaller maps are padded to it.
        head_dim: channels of a head, rounded to a divisor of `dim`.

    Source: PVTv2 (arXiv 2106.13797).
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 2,
        head_dim: int = 32,
    ) -> None:
        super().__init__()
        check_min(reduction=reduction)
        self.dim, self.reduction = dim, reduction
        self.attention = PvtAttention(dim, heads_for(dim, head_dim), sr_ratio=reduction)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.dim)
        height, width = x.shape[2:]
        bottom, right = max(self.reduction - height, 0), max(self.reduction - width, 0)
        padded = F.pad(x, (0, right, 0, bottom))
        mixed = self.attention(padded.flatten(2).transpose(1, 2), list(padded.shape[2:]))
        return tokens_to_map(mixed, [padded.shape[2], padded.shape[3]])[:, :, :height, :width]

    def macs(self, height: int, width: int) -> int:
        height, width = max(height, self.reduction), max(width, self.reduction)
        positions, dim = height * width, self.dim
        reduced = (height // self.reduction) * (width // self.reduction)
        convolution = reduced * self.reduction**2 * dim**2 if self.reduction > 1 else 0
        return 2 * positions * dim**2 + convolution + 2 * reduced * dim**2 + 2 * positions * reduced * dim


class LinearAttention(nn.Module):
    """Attention with φ(q)·φ(k), φ = elu + 1, in place of the softmax: its cost is linear in positions.

    Args:
        dim: channels C.
        head_dim: channels of a head, rounded to a divisor of `dim`.

    Source: "Transformers are RNNs" (arXiv 2006.16236).
    """

    def __init__(
        self,
        dim: int,
        head_dim: int = 32,
    ) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, heads_for(dim, head_dim)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.dim)
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, self.num_heads, -1)).unbind(1)  # B heads d N
        q, k = F.elu(q) + 1, F.elu(k) + 1
        summary = k @ v.transpose(2, 3)  # B heads d d
        total = k.sum(3, keepdim=True)  # B heads d 1
        mixed = (summary.transpose(2, 3) @ q) / (total.transpose(2, 3) @ q)
        return self.proj(mixed.flatten(1, 2).view_as(x))

    def macs(self, height: int, width: int) -> int:
        positions, head_dim = height * width, self.dim // self.num_heads
        return positions * self.dim * (4 * self.dim + 2 * head_dim + 1)


def _regions(
    size: Sequence[int], padding: Sequence[int], shifts: Sequence[int], device: torch.device
) -> Tensor:
    """A number for every position of the padded and shifted map: attention stays within one number.

    After the shift, the last window of an axis holds positions of both ends; padding is a region of its own.
    """

    def axis(length: int, padding: int, shift: int) -> Tensor:
        position = torch.arange(length + padding, device=device).roll(-shift)
        wrapped = torch.zeros_like(position)
        if shift:
            wrapped[-shift:] = 1
        return torch.where(position < length, wrapped, 2)

    rows, columns = (axis(*each) for each in zip(size, padding, shifts, strict=True))
    return 3 * rows[:, None] + columns[None, :]


torch.fx.wrap("check_input")
