"""Token mixers by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from atconv.mixers.attention import (
    LinearAttention,
    NeighborhoodAttention,
    SelfAttention,
    SpatialReductionAttention,
    WindowAttention,
)
from atconv.mixers.checking import check_min
from atconv.mixers.convolution import CondConv, DepthwiseConv, Identity, Involution, Pooling
from atconv.modules import ATConv2d

__all__ = ["MIXERS", "Mixer", "create_mixer"]


@dataclass(frozen=True)
class Mixer:
    """A token mixer that can be built by name."""

    build: Callable[..., nn.Module]
    """(channels, **options) → module, B C H W → B C H W, with `macs(height, width)` for one sample"""
    source: str
    """where it was published"""
    cost: str
    """growth of time with N positions, C channels, K the size of the kernel or window"""


MIXERS: dict[str, Mixer] = {
    "atconv": Mixer(ATConv2d, "Attentive Convolution (arXiv 2510.20092)", "N·C² + N·K²·C"),
    "attention": Mixer(SelfAttention, "ViT (arXiv 2010.11929)", "N·C² + N²·C"),
    "window_attention": Mixer(WindowAttention, "Swin (arXiv 2103.14030)", "N·C² + N·K²·C"),
    "neighborhood_attention": Mixer(NeighborhoodAttention, "NAT (arXiv 2204.07143)", "N·C² + N·K²·C"),
    "spatial_reduction_attention": Mixer(
        SpatialReductionAttention, "PVTv2 (arXiv 2106.13797)", "N·C² + N²·C/R²"
    ),
    "linear_attention": Mixer(LinearAttention, "Linear Transformer (arXiv 2006.16236)", "N·C²"),
    "depthwise": Mixer(DepthwiseConv, "MobileNet (arXiv 1704.04861)", "N·K²·C"),
    "pooling": Mixer(Pooling, "PoolFormer (arXiv 2111.11418)", "N·K²·C"),
    "involution": Mixer(Involution, "Involution (arXiv 2103.06255)", "N·C² + N·K²·C"),
    "condconv": Mixer(CondConv, "CondConv (arXiv 1904.04971)", "N·K²·C"),
    "identity": Mixer(Identity, "PoolFormer's ablation (arXiv 2111.11418)", "nothing"),
}


def create_mixer(
    name: str,
    dim: int,
    block: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Build a token mixer for maps of `dim` channels.

    Args:
        name: one of `MIXERS`.
        dim: channels C.
        block: index of the block in its stage; every second window attention shifts its windows.
        device, dtype: of the parameters.
        **options: of the mixer's class, such as kernel_size, head_dim, or routing=False of "atconv".

    Raises:
        TypeError: `name` is no string, such as a class.
        ValueError: an unknown name, or options the mixer does not take.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"a token mixer is given by its name, got {name!r}: give one of {', '.join(MIXERS)}, or add your "
            "class under a name of its own: atconv.mixers.MIXERS[name] = atconv.mixers.Mixer(…)"
        )
    if name not in MIXERS:
        near = difflib.get_close_matches(name, MIXERS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        own = "; one of your own goes into atconv.mixers.MIXERS first"
        raise ValueError(f"no token mixer {name!r}{hint} There are {', '.join(MIXERS)}{own}")
    check_min(dim=dim)
    if name == "window_attention" and block % 2:
        options.setdefault("shift", options.get("window", 7) // 2)
    try:
        with nullcontext() if device is None else torch.device(device):
            return MIXERS[name].build(dim, **options).to(dtype=dtype)
    except TypeError as error:
        given = f"does not take {options}" if options else f"is not built from dim = {dim} alone"
        raise ValueError(f"the token mixer {name} {given}: {error}") from error
