"""Checks of the inputs and options of the operator's steps."""

from __future__ import annotations

import torch
from torch import Tensor

from atconv.ops.dynamic_depthwise_conv import is_shared

__all__ = ["PADDING_MODES", "check_alpha", "check_kernel", "check_map", "check_padding", "per_axis"]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def per_axis(value: int | list[int], axes: int, name: str) -> list[int]:
    """One number for each axis.

    Raises:
        ValueError: another number of them, or one below 1.
    """
    values = [value] * axes if isinstance(value, int) else value
    if torch.jit.is_scripting():
        return values
    if len(values) != axes or any(each < 1 for each in values):
        raise ValueError(f"{name} must be 1 or more, or {axes} such numbers, one for each axis, got {value}")
    return values


def check_map(x: Tensor) -> None:
    """Raise ValueError or TypeError unless x is a floating-point B C *S of 1 to 3 axes, none of which is
    empty."""
    if x.ndim not in (3, 4, 5):
        raise ValueError(
            f"x must be B C H W, B C N or B C D H W (3 to 5 axes), got {x.ndim} with shape {tuple(x.shape)}; "
            "for a single map add x[None]"
        )
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}; convert it with x.float()")
    if 0 in x.shape[1:]:
        raise ValueError(f"x must have at least one channel and one position, got {tuple(x.shape)}")


def check_alpha(alpha: Tensor, kernel: Tensor) -> None:
    if kernel.ndim not in (3, 4, 5) or alpha.shape != kernel.shape[1:2]:
        raise ValueError(
            "lateral_inhibition: kernel must be B C K K (B C K, B C K K K) and alpha C, "
            f"got {tuple(kernel.shape)} and {tuple(alpha.shape)}"
        )


def check_kernel(kernel: Tensor, x: Tensor) -> None:
    batch, channels = x.shape[:2]
    sizes = kernel.shape[2:]
    if (
        kernel.ndim != x.ndim
        or 0 in kernel.shape[1:2]
        or channels % kernel.shape[1]
        or any(n % 2 == 0 for n in sizes)
    ):
        ks = ", K" * (x.ndim - 2)
        raise ValueError(
            f"dynamic_depthwise_conv: a map {tuple(x.shape)} takes kernels (B or 1, {channels}{ks}) "
            f"with odd K, got {tuple(kernel.shape)}; groups of channels may share one, where their number "
            f"divides {channels}"
        )
    if not is_shared(kernel) and kernel.shape[0] != batch:
        raise ValueError(
            f"dynamic_depthwise_conv: {batch} samples take {batch} kernels or 1, got {kernel.shape[0]}"
        )


def check_padding(x: Tensor, padding: list[int], mode: str) -> None:
    if mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {mode!r}")
    beyond = {"reflect": 1, "circular": 0}
    needed = [amount + beyond[mode] for amount in padding] if mode in beyond else [1] * len(padding)
    if any(size < length for size, length in zip(x.shape[2:], needed, strict=True)):
        raise ValueError(
            f"padding_mode={mode!r} takes axes of at least {needed} positions for this kernel and dilation, "
            f"got {list(x.shape[2:])}: use zeros or replicate, or a smaller kernel"
        )
