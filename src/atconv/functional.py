"""ATConv as pure functions, one for each step of the mathematics. Imports torch alone.

A content-made K×K kernel for every sample and channel, whose weights compete:

    c = pool_context(x, K*K)                  B C n     what the map holds, in n = K² bins
    k = context_to_kernel(c, ...)             B C K K   adaptive routing
    k = lateral_inhibition(k, alpha)          B C K K   differential kernel modulation
    y = dynamic_depthwise_conv2d(v, k)        B C H W   v = 1×1 projection of x

and `atconv2d` is the whole, with the two 1×1 projections around it.

Axes: B batch, C channels, H×W map, N = H·W positions, K odd kernel size, n = K². Every function
takes any floating dtype and any B ≥ 0, H ≥ 1, W ≥ 1, and is differentiable twice.

Source: "Attentive Convolution: Unifying the Expressivity of Self-Attention with Convolutional
Efficiency", arXiv 2510.20092.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "atconv2d",
    "context_to_kernel",
    "dynamic_depthwise_conv2d",
    "lateral_inhibition",
    "pool_context",
    "project_channels",
]

_LARGE_SAMPLE = 2**16  # values of a map from which a convolution of its own pays, measured on two cores


def pool_context(x: Tensor, bins: int, grid: bool = False) -> Tensor:
    """Average the raster-ordered positions of a map into `bins` equal stretches.

    Bin i covers positions ⌊i·N/bins⌋ up to ⌈(i+1)·N/bins⌉ of the flattened map: one-dimensional,
    row after row. With fewer positions than bins, bins repeat positions.

    Args:
        x: map, B C H W.
        bins: number of bins n ≥ 1, K² for a K×K kernel.
        grid: average the cells of a √n × √n grid instead, row by row. Not what the released weights take.

    Returns:
        context, B C n.

    Raises:
        ValueError: `x` is not B C H W, is an empty map, `bins` < 1, or `bins` is no square for a grid.
        TypeError: `x` is not floating point.
    """
    check_map(x, "x")
    if bins < 1:
        raise ValueError(f"pool_context: bins must be at least 1, got {bins}")
    side = math.isqrt(bins)
    if grid and side * side != bins:
        raise ValueError(f"pool_context: the bins of a grid must be a square, got {bins}")
    # On MPS adaptive pooling takes only sizes that the bins divide (pytorch issue 96056).
    if _symbolic() or x.device.type == "mps":
        return _bin_means(x, bins, grid)
    if grid:
        return F.adaptive_avg_pool2d(x, side).flatten(2)
    return F.adaptive_avg_pool1d(_flatten_positions(x), bins)


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
    size = round(n**0.5)
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
    # Contiguous, and the generator from the left: CPUs multiply strided bfloat16 many times slower.
    mixed = F.linear(context.transpose(1, 2).contiguous(), weight, bias)
    kernel = generator_weight @ activation(mixed)
    if generator_bias is not None:
        kernel = kernel + generator_bias[:, None]
    return kernel.transpose(1, 2).unflatten(2, (size, size))


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
    if kernel.ndim != 4 or alpha.shape != kernel.shape[1:2]:
        raise ValueError(
            "lateral_inhibition: kernel must be B C K K and alpha C, "
            f"got {tuple(kernel.shape)} and {tuple(alpha.shape)}"
        )
    strength = torch.sigmoid(alpha)[:, None, None]
    return kernel - strength * kernel.mean(dim=(2, 3), keepdim=True)


def dynamic_depthwise_conv2d(x: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlate every channel of every sample with its own kernel.

    y[b,c,p] = Σ_δ kernel[b,c,δ] · x[b,c,p+δ], zero padding K//2, stride 1: the map keeps its size.
    Channels-last in gives channels-last out.

    Args:
        x: map, B C H W.
        kernel: B C K K, or 1 C K K for the same kernel in every sample. Cast to the dtype of `x`.

    Returns:
        map, B C H W, dtype of `x`.

    Raises:
        ValueError: the shapes do not fit together, or K is even.
        TypeError: `x` is not floating point.
    """
    check_map(x, "x")
    batch, channels, height, width = x.shape
    size = kernel.shape[-1] if kernel.ndim else 0
    if kernel.ndim != 4 or kernel.shape[1] != channels or kernel.shape[2] != size or size % 2 == 0:
        raise ValueError(
            f"dynamic_depthwise_conv2d: a map {tuple(x.shape)} takes kernels (B or 1, {channels}, K, K) "
            f"with odd K, got {tuple(kernel.shape)}"
        )
    kernel = kernel.to(x.dtype)
    # In an export the batch is a symbol: comparing it with 1 would fix it there.
    if isinstance(kernel.shape[0], int) and kernel.shape[0] == 1:
        return F.conv2d(x, kernel.transpose(0, 1), padding=size // 2, groups=channels)
    if kernel.shape[0] != batch:
        raise ValueError(
            f"dynamic_depthwise_conv2d: {batch} samples take {batch} kernels or 1, got {kernel.shape[0]}"
        )
    if _symbolic() or batch == 0:
        return _shifted_products(x, kernel)
    if _conv_by_sample(x):
        pairs = zip(x.split(1), kernel.unsqueeze(2).unbind(0), strict=True)
        return torch.cat([F.conv2d(one, own, padding=size // 2, groups=channels) for one, own in pairs])
    # All samples side by side as channels of one image: one grouped convolution for the batch.
    groups = batch * channels
    y = F.conv2d(
        x.reshape(1, groups, height, width),
        kernel.reshape(groups, 1, size, size),
        padding=size // 2,
        groups=groups,
    ).reshape(batch, channels, height, width)
    return y.contiguous(memory_format=torch.channels_last) if _channels_last(x) else y


def project_channels(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution: B C H W with weight (D C) or (D C 1 1) and bias (D, or None) → B D H W."""
    return F.conv2d(x, weight if weight.ndim == 4 else weight[:, :, None, None], bias)


def atconv2d(
    x: Tensor,
    context_weight: Tensor,
    context_bias: Tensor | None,
    generator_weight: Tensor,
    generator_bias: Tensor | None,
    alpha: Tensor | None,
    value_weight: Tensor,
    value_bias: Tensor | None,
    output_weight: Tensor,
    output_bias: Tensor | None,
    activation: Callable[[Tensor], Tensor] = F.gelu,
) -> Tensor:
    """The whole operator: pool, make the kernels, inhibit, convolve the values, project.

    Pools before it projects: both are affine and averaging weights sum to 1, so this equals
    projecting all N positions and pooling afterwards, for n·C² multiply-adds in place of N·C².

    Args:
        x: map, B C H W.
        context_weight, context_bias: W_k (C C) and b_k (C).
        generator_weight, generator_bias: G (n n) and g (n), n = K².
        alpha: C, or None for no lateral inhibition (λ = 0).
        value_weight, value_bias: W_v (C C or C C 1 1) and b_v (C).
        output_weight, output_bias: W_o (C C or C C 1 1) and b_o (C).
        activation: between W_k and G.

    Returns:
        map, B C H W.

    Raises:
        ValueError, TypeError: as the steps do.
    """
    context = pool_context(x, generator_weight.shape[0])
    kernel = context_to_kernel(
        context, context_weight, context_bias, generator_weight, generator_bias, activation
    )
    if alpha is not None:
        kernel = lateral_inhibition(kernel, alpha)
    routed = dynamic_depthwise_conv2d(project_channels(x, value_weight, value_bias), kernel)
    return project_channels(routed, output_weight, output_bias)


def check_map(x: Tensor, name: str) -> None:
    """Raise ValueError or TypeError unless x is a floating-point B C H W with C, H, W ≥ 1."""
    if x.ndim != 4:
        raise ValueError(
            f"{name} must be B C H W (4 axes), got {x.ndim} with shape {tuple(x.shape)}; "
            "for tokens B N C use ATConvTokens, for a single map add x[None]"
        )
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; convert it with {name}.float()")
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{name} must have at least one channel and one position, got {tuple(x.shape)}")


def _conv_by_sample(x: Tensor) -> bool:
    """Whether one convolution a sample beats one for the batch, which has to leave channels-last and return.

    On a CPU, once a sample is large enough to hide the cost of a call; on GPUs calls cost more.
    """
    return x.device.type == "cpu" and x[0].numel() >= _LARGE_SAMPLE and _channels_last(x)


def _flatten_positions(x: Tensor) -> Tensor:
    """B C H W → B C N, a view where it can be."""
    if _channels_last(x):
        # flatten gives one sample a batch stride that hides channels-last from pooling, which then copies.
        return x.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)
    return x.flatten(2)


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


# Compiling and export. Adaptive pooling converts to ONNX with the traced size baked in, and a convolution
# with B·C groups does not convert at all; torch.compile makes both anew for every size. The two forms below
# are the same functions, written so that batch, height and width stay symbols. A compiler fuses them;
# in eager mode they are slower.


def _symbolic() -> bool:
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()


def _bin_means(x: Tensor, bins: int, grid: bool) -> Tensor:
    """`pool_context` as one product with the share that each position has in each bin."""
    height, width = x.shape[2:]
    if grid:
        side = math.isqrt(bins)
        rows, columns = _shares(height, side, x), _shares(width, side, x)
        shares = (rows[:, None, :, None] * columns[:, None]).reshape(bins, height * width)
    else:
        shares = _shares(height * width, bins, x)
    positions = x.flatten(2).transpose(1, 2)
    return torch.bmm(shares.expand(x.shape[0], -1, -1), positions).transpose(1, 2)


def _shares(positions: int, bins: int, like: Tensor) -> Tensor:
    """The weight of each position in the mean of each bin of adaptive pooling: bins × positions."""
    index = torch.arange(bins, device=like.device)[:, None]
    start = index * positions // bins
    stop = ((index + 1) * positions + bins - 1) // bins
    position = torch.arange(positions, device=like.device)
    return ((position >= start) & (position < stop)).to(like.dtype) / (stop - start)


def _shifted_products(x: Tensor, kernel: Tensor) -> Tensor:
    """`dynamic_depthwise_conv2d` as K² shifted maps, each times its weight."""
    size = kernel.shape[-1]
    padded = F.pad(x, (size // 2,) * 4)
    taps = kernel.flatten(2).unsqueeze(3).split(1, dim=2)
    # Ends counted from the back are constants in the graph; counted from the front they would be symbols.
    windows = [slice(i, i - size + 1 or None) for i in range(size)]
    bands = [padded[..., rows, :] for rows in windows]
    shifted = (band[..., cols] for band in bands for cols in windows)
    return functools.reduce(torch.add, map(torch.mul, shifted, taps))
