"""ATConv as pure functions, one for each step of the mathematics.

A content-made K×K kernel for every sample and channel, whose weights compete:

    c = pool_context(x, K*K)                  B C n     what the map holds, in n = K² bins
    k = context_to_kernel(c, ...)             B C K K   adaptive routing
    k = lateral_inhibition(k, alpha)          B C K K   differential kernel modulation
    y = dynamic_depthwise_conv2d(v, k)        B C H W   v = 1×1 projection of x

and `atconv2d` is the full operator, with the two 1×1 projections around it.

Axes: B batch, C channels, H×W map, N = H·W positions, K odd kernel size, n = K². Every function
takes any floating dtype and any B ≥ 0, H ≥ 1, W ≥ 1, and is differentiable twice.

Source: "Attentive Convolution: Unifying the Expressivity of Self-Attention with Convolutional
Efficiency", arXiv 2510.20092.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from atconv.ops.backend import uses_triton
from atconv.ops.context_pooling import pool
from atconv.ops.dynamic_depthwise_conv import dynamic_depthwise_conv, is_shared, triton

__all__ = [
    "atconv2d",
    "context_to_kernel",
    "dynamic_depthwise_conv2d",
    "generate_kernel",
    "lateral_inhibition",
    "pool_context",
    "project_channels",
]


def pool_context(x: Tensor, bins: int, context_grid: bool = False) -> Tensor:
    """Average the raster-ordered positions of a map into `bins` equal stretches.

    Bin i covers positions ⌊i·N/bins⌋ up to ⌈(i+1)·N/bins⌉ of the flattened map: one-dimensional,
    row after row. With fewer positions than bins, bins repeat positions.

    Args:
        x: map, B C H W.
        bins: number of bins n ≥ 1, K² for a K×K kernel.
        context_grid: average the cells of a √n × √n grid instead, row by row. The released weights take the
            stretches.

    Returns:
        context, B C n.

    Raises:
        ValueError: `x` is not B C H W or is an empty map, `bins` < 1, or `bins` is not a square where
            `context_grid` is set.
        TypeError: `x` is not floating point.
    """
    if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
        check_map(x)
        if bins < 1:
            raise ValueError(f"pool_context: bins must be at least 1, got {bins}")
        if context_grid and math.isqrt(bins) ** 2 != bins:
            raise ValueError(f"pool_context: the bins of a grid must be a square, got {bins}")
    return pool(x, bins, context_grid)


def context_to_kernel(
    context: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    generator_weight: Tensor,
    generator_bias: Tensor | None,
    activation: Callable[[Tensor], Tensor] = F.gelu,
) -> Tensor:
    """Translate pooled context into one K×K kernel for each sample and channel (C2K).

    k = G · activation(W c + b) + g, where W mixes the channels inside each bin and G, shared by all
    channels, mixes the bins; the n values of a channel fill its kernel row by row.

    Args:
        context: B C n with n = K², K odd (from `pool_context`).
        weight, bias: W (C C) and b (C, or None).
        generator_weight, generator_bias: G (n n) and g (n, or None).
        activation: elementwise function; exact GELU in AttNet, tanh GELU in SiT.

    Returns:
        kernels, B C K K.

    Raises:
        ValueError: the shapes do not fit together, or n is not the square of an odd number.
    """
    if context.ndim != 3:
        raise ValueError(
            f"context_to_kernel: context must be B C n, got shape {tuple(context.shape)}; "
            "make it with pool_context(x, kernel_size**2)"
        )
    channels, n = context.shape[1:]
    size = round(int(n) ** 0.5)
    if size * size != n or size % 2 == 0:
        raise ValueError(
            f"context_to_kernel: {n} bins do not fill a kernel of odd size; "
            "pool into 9, 25 or 49 bins for 3×3, 5×5 or 7×7"
        )
    if weight.shape != (channels, channels) or generator_weight.shape != (n, n):
        raise ValueError(
            f"context_to_kernel: context {tuple(context.shape)} takes weight ({channels}, {channels}) and "
            f"generator_weight ({n}, {n}), got {tuple(weight.shape)} and {tuple(generator_weight.shape)}"
        )
    # Contiguous: CPUs multiply strided bfloat16 many times slower.
    mixed = F.linear(context.transpose(1, 2).contiguous(), weight, bias)
    kernel = generate_kernel(activation(mixed), generator_weight, generator_bias)
    return kernel.unflatten(2, (size, size))


def generate_kernel(mixed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The second half of `context_to_kernel`: mix the bins of every channel into its kernel.

    Args:
        mixed: activated context with channels last, B n C.
        weight, bias: G (n n) and g (n, or None).

    Returns:
        kernels row by row, B C n.
    """
    # From the left: the transpose of `mixed` would be strided, see above.
    kernel = weight @ mixed
    if bias is not None:
        kernel = kernel + bias[:, None]
    return kernel.transpose(1, 2)


def lateral_inhibition(kernel: Tensor, alpha: Tensor) -> Tensor:
    """Let the weights of each kernel compete: k − sigmoid(α)·mean(k) (differential kernel modulation).

    Args:
        kernel: B C K K.
        alpha: C, one learned number a channel; λ = sigmoid(α) is the strength, 0.5 at α = 0.

    Returns:
        modulated kernels, B C K K, in the promoted dtype of both.

    Raises:
        ValueError: `kernel` is not B C K K or `alpha` is not C.
    """
    if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
        _check_alpha(alpha, kernel)
    strength = torch.sigmoid(alpha)[:, None, None]
    return kernel - strength * kernel.mean(dim=(2, 3), keepdim=True)


def dynamic_depthwise_conv2d(x: Tensor, kernel: Tensor, alpha: Tensor | None = None) -> Tensor:
    """Cross-correlate every channel of every sample with its own kernel.

    y[b,c,p] = Σ_δ kernel[b,c,δ] · x[b,c,p+δ], zero padding K//2, stride 1: the map keeps its size.
    Channels-last in gives channels-last out.

    Args:
        x: map, B C H W.
        kernel: B C K K, or 1 C K K for the same kernel in every sample. Cast to the dtype of `x`.
        alpha: C, for `lateral_inhibition` of the kernels first, which costs no pass where Triton computes it.

    Returns:
        map, B C H W, dtype of `x`.

    Raises:
        ValueError: the shapes do not fit together, or K is even.
        TypeError: `x` is not floating point.
    """
    if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
        check_map(x)
        _check_kernel(kernel, x)
    if not torch.jit.is_scripting():
        by_triton = uses_triton(x)
        if by_triton:
            if alpha is not None:
                _check_alpha(alpha, kernel)
            return triton(x, kernel, alpha)
    if alpha is not None:
        kernel = lateral_inhibition(kernel, alpha)
    return dynamic_depthwise_conv(x, kernel.to(x.dtype))


def project_channels(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution: B C H W with weight (D C) or (D C 1 1) and bias (D, or None) → B D H W."""
    return F.conv2d(x, weight if weight.ndim == 4 else weight[:, :, None, None], bias)


def atconv2d(
    x: Tensor,
    context_weight: Tensor | None,
    context_bias: Tensor | None,
    generator_weight: Tensor | None,
    generator_bias: Tensor | None,
    alpha: Tensor | None,
    value_weight: Tensor,
    value_bias: Tensor | None,
    output_weight: Tensor,
    output_bias: Tensor | None,
    activation: Callable[[Tensor], Tensor] = F.gelu,
    *,
    static_kernel: Tensor | None = None,
    context_grid: bool = False,
) -> Tensor:
    """The full operator: pool, make the kernels, inhibit, convolve the values, project.

    Pools before it projects: both are affine and averaging weights sum to 1, so this equals
    projecting all N positions and pooling afterwards, for n·C² multiply-adds in place of N·C².

    Args:
        x: map, B C H W.
        context_weight, context_bias: W_k (C C) and b_k (C); None without routing.
        generator_weight, generator_bias: G (n n) and g (n), n = K²; None without routing.
        alpha: C, or None for no lateral inhibition (λ = 0).
        value_weight, value_bias: W_v (C C or C C 1 1) and b_v (C).
        output_weight, output_bias: W_o (C C or C C 1 1) and b_o (C).
        activation: between W_k and G.
        static_kernel: C K K for no adaptive routing: the same kernels for every sample.
        context_grid: as in `pool_context`.

    Returns:
        map, B C H W.

    Raises:
        ValueError, TypeError: as the steps do; ValueError too unless either `static_kernel` is given, or
            both `context_weight` and `generator_weight`.
    """
    if context_weight is not None and generator_weight is not None and static_kernel is None:
        context = pool_context(x, generator_weight.shape[0], context_grid)
        kernel = context_to_kernel(
            context, context_weight, context_bias, generator_weight, generator_bias, activation
        )
    elif context_weight is None and generator_weight is None and static_kernel is not None:
        kernel = static_kernel[None]
    else:
        raise ValueError(
            "atconv2d: give context_weight and generator_weight for adaptive routing, or static_kernel alone"
        )
    routed = dynamic_depthwise_conv2d(project_channels(x, value_weight, value_bias), kernel, alpha)
    return project_channels(routed, output_weight, output_bias)


def check_map(x: Tensor) -> None:
    """Raise ValueError or TypeError unless x is a floating-point B C H W with C, H, W ≥ 1."""
    if x.ndim != 4:
        raise ValueError(
            f"x must be B C H W (4 axes), got {x.ndim} with shape {tuple(x.shape)}; "
            "for tokens B N C use ATConvTokens, for a single map add x[None]"
        )
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}; convert it with x.float()")
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"x must have at least one channel and one position, got {tuple(x.shape)}")


def _check_alpha(alpha: Tensor, kernel: Tensor) -> None:
    if kernel.ndim != 4 or alpha.shape != kernel.shape[1:2]:
        raise ValueError(
            "lateral_inhibition: kernel must be B C K K and alpha C, "
            f"got {tuple(kernel.shape)} and {tuple(alpha.shape)}"
        )


def _check_kernel(kernel: Tensor, x: Tensor) -> None:
    batch, channels = x.shape[:2]
    size = kernel.shape[-1] if kernel.ndim else 0
    if kernel.ndim != 4 or kernel.shape[1] != channels or kernel.shape[2] != size or size % 2 == 0:
        raise ValueError(
            f"dynamic_depthwise_conv2d: a map {tuple(x.shape)} takes kernels (B or 1, {channels}, K, K) "
            f"with odd K, got {tuple(kernel.shape)}"
        )
    if not is_shared(kernel) and kernel.shape[0] != batch:
        raise ValueError(
            f"dynamic_depthwise_conv2d: {batch} samples take {batch} kernels or 1, got {kernel.shape[0]}"
        )


# Steps whose checks and forms depend on shapes are single nodes of a graph that torch.fx traces.
for _step in ("pool_context", "context_to_kernel", "lateral_inhibition", "dynamic_depthwise_conv2d"):
    torch.fx.wrap(_step)
