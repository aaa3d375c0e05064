"""Checks of the inputs and options of the operator's steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from atconv.ops.causal import chunks_of
from atconv.ops.dynamic_depthwise_conv import is_shared

__all__ = [
    "PADDING_MODES",
    "check_alpha",
    "check_bins",
    "check_causal",
    "check_causal_kernel",
    "check_context",
    "check_kernel",
    "check_map",
    "check_padding",
    "check_sequence",
    "per_axis",
    "whole_numbers",
]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def per_axis(value: int | list[int], axes: int, name: str) -> list[int]:
    """One number for each axis.

    Raises:
        TypeError: one that is not whole.
        ValueError: another number of them, or one below 1.
    """
    if torch.jit.is_scripting():
        return [value] * axes if isinstance(value, int) else value
    else:  # noqa: RET505  (TorchScript compiles what follows a return)
        values = whole_numbers(value, axes, name)
        if len(values) != axes or any(each < 1 for each in values):
            raise ValueError(
                f"{name} must be 1 or more, or {axes} such numbers, one for each axis, got {value}"
            )
        return values


def whole_numbers(value: int | Sequence[int], count: int, name: str) -> list[int]:
    """The given numbers, or `count` times the given one.

    Raises:
        TypeError: one is not whole. True and False are not numbers.
    """
    numbers = list(value) if isinstance(value, Sequence) else [value] * count
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise TypeError(f"{name} takes whole numbers, got {value!r}")
    return numbers


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


def check_bins(x: Tensor, bins: int, grid: list[int] | None) -> None:
    if bins < 1:
        raise ValueError(f"pool_context: bins must be at least 1, got {bins}")
    if grid is not None and (len(grid) != x.ndim - 2 or math.prod(grid) != bins):
        raise ValueError(
            f"pool_context: {bins} bins of a map with {x.ndim - 2} axes take a grid of as many axes and "
            f"cells, got {tuple(grid)}"
        )


def check_context(context: Tensor, weight: Tensor, generator_weight: Tensor, sizes: Sequence[int]) -> None:
    if context.ndim != 3:
        raise ValueError(
            f"context_to_kernel: context must be B C n, got shape {tuple(context.shape)}; "
            "make it with pool_context(x, kernel_size**2)"
        )
    (channels, bins), weights = context.shape[1:], generator_weight.shape[0]
    if math.prod(sizes) != weights or any(size % 2 == 0 for size in sizes):
        raise ValueError(
            f"context_to_kernel: {weights} bins do not fill a kernel of odd size ({sizes}); "
            "pool into 9, 25 or 49 bins for 3×3, 5×5 or 7×7, or give the kernel_size of each axis, "
            "such as (7,)"
        )
    if weight.shape[1:] != (channels,) or generator_weight.shape[1:] != (bins,):
        raise ValueError(
            f"context_to_kernel: context {tuple(context.shape)} takes weight (D, {channels}) and "
            f"generator_weight (K², {bins}), got {tuple(weight.shape)} and {tuple(generator_weight.shape)}"
        )


def check_causal(stride: list[int], padding_mode: str, context_grid: object) -> None:
    if stride != [1] or padding_mode != "zeros" or context_grid:
        raise ValueError(
            "causal takes stride 1, padding_mode zeros and no context_grid, and sequences alone: ATConv1d, "
            "or ATConvTokens with axes=1"
        )


def check_sequence(x: Tensor, bins: int, chunk: int) -> None:
    check_map(x)
    if x.ndim != 3:
        raise ValueError(f"causal_context takes a sequence B C N, got {tuple(x.shape)}")
    if bins < 1 or chunk < 1:
        raise ValueError(f"causal_context: bins and chunk must be at least 1, got {bins} and {chunk}")


def check_causal_kernel(x: Tensor, kernel: Tensor, chunk: int) -> None:
    chunks = chunks_of(x.shape[-1], chunk) if chunk > 0 else 0
    if (
        x.ndim != 3
        or kernel.ndim != 3
        or chunk < 1
        or x.shape[1] % kernel.shape[1]
        or kernel.shape[0] not in (x.shape[0] * chunks, 1)  # in an export equal before they are compared
    ):
        raise ValueError(
            f"causal_depthwise_conv: a sequence {tuple(x.shape)} in chunks of {chunk} takes kernels "
            f"({x.shape[0]}·{chunks} or 1, a divisor of C, K), got {tuple(kernel.shape)}"
        )


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
