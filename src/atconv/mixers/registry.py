"""Token mixers by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from atconv.mixers.attention import (
    LinearAttention,
    NeighborhoodAttention,
    SelfAttention,
    SpatialReductionAttention,
    WindowAttention,
)
from atconv.mixers.checking import check_least
from atconv.mixers.convolution import CondConv, DepthwiseConv, Identity, Involution, Pooling
from atconv.modules import ATConv2d

__all__ = ["MIXERS", "Mixer", "TokenMixer", "create_mixer", "mixer_names"]


class TokenMixer(Protocol):
    """What a backbone needs of a mixer."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds for one sample on a map of height × width."""
        ...


@dataclass(frozen=True)
class Mixer:
    """A token mixer that can be built by name."""

    build: Callable[..., nn.Module]
    """(channels, **options) → module, B C H W → B C H W"""
    source: str
    """where it was published"""
    cost: str
    """growth of time with N positions, C channels, K the kernel's or window's side"""


_ATCONV = "Attentive Convolution (arXiv 2510.20092)"
_ATCONV_COST = "N·C² + N·K²·C"

MIXERS: dict[str, Mixer] = {
    "atconv": Mixer(ATConv2d, _ATCONV, _ATCONV_COST),
    "atconv_no_routing": Mixer(partial(ATConv2d, routing=False), f"{_ATCONV}, ablated", _ATCONV_COST),
    "atconv_no_inhibition": Mixer(partial(ATConv2d, inhibition=False), f"{_ATCONV}, ablated", _ATCONV_COST),
    "atconv_neither": Mixer(
        partial(ATConv2d, routing=False, inhibition=False), f"{_ATCONV}, ablated", _ATCONV_COST
    ),
    "atconv_grid": Mixer(
        partial(ATConv2d, context_grid=True), f"{_ATCONV}, context pooled over a grid", _ATCONV_COST
    ),
    "attention": Mixer(SelfAttention, "ViT (arXiv 2010.11929)", "N·C² + N²·C"),
    "attention_rope": Mixer(
        partial(SelfAttention, rope=True), "ViT with rotary 2-D positions (arXiv 2104.09864)", "N·C² + N²·C"
    ),
    "window_attention": Mixer(WindowAttention, "Swin (arXiv 2103.14030)", "N·C² + N·K²·C"),
    "neighborhood_attention": Mixer(NeighborhoodAttention, "NAT (arXiv 2204.07143)", "N·C² + N·K²·C"),
    "spatial_reduction_attention": Mixer(
        SpatialReductionAttention, "PVTv2 (arXiv 2106.13797)", "N·C² + N²·C/R²"
    ),
    "linear_attention": Mixer(LinearAttention, "Linear Transformer (arXiv 2006.16236)", "N·C²"),
    "depthwise3": Mixer(DepthwiseConv, "MobileNet (arXiv 1704.04861)", "N·K²·C"),
    "depthwise7": Mixer(partial(DepthwiseConv, kernel_size=7), "ConvNeXt (arXiv 2201.03545)", "N·K²·C"),
    "pooling": Mixer(Pooling, "PoolFormer (arXiv 2111.11418)", "N·K²·C"),
    "involution": Mixer(Involution, "Involution (arXiv 2103.06255)", "N·C² + N·K²·C"),
    "condconv": Mixer(CondConv, "CondConv (arXiv 1904.04971)", "N·K²·C"),
    "identity": Mixer(Identity, "PoolFormer's ablation (arXiv 2111.11418)", "nothing"),
}


def mixer_names() -> list[str]:
    """Names that `create_mixer` and `token_mixer=` take."""
    return list(MIXERS)


def create_mixer(name: str, dim: int, block: int = 0, **options: Any) -> nn.Module:
    """Build a token mixer for maps of `dim` channels.

    Args:
        name: one of `mixer_names()`.
        dim: channels C.
        block: which block of its stage it stands in; every second window attention shifts its windows.
        **options: of the mixer's class, such as kernel_size or head_dim.

    Raises:
        ValueError: an unknown name, or options the mixer does not take.
    """
    if name not in MIXERS:
        near = difflib.get_close_matches(name, MIXERS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"no token mixer {name!r}{hint} There are {', '.join(MIXERS)}")
    check_least(dim=dim)
    if name == "window_attention" and block % 2:
        options.setdefault("shift", options.get("window", 7) // 2)
    try:
        return MIXERS[name].build(dim, **options)
    except TypeError as error:
        raise ValueError(f"the token mixer {name} does not take {options}: {error}") from error
