"""ATConv as pure functions, one for each step of the mathematics.

A content-made K×K kernel for every sample and channel, whose weights compete:

    c = pool_context(x, K*K)                  B C n     what the map holds, in n = K² bins
    k = context_to_kernel(c, ...)             B C K K   adaptive routing
    k = lateral_inhibition(k, alpha)          B C K K   differential kernel modulation
    y = dynamic_depthwise_conv(v, k)          B C H W   v = 1×1 projection of x

and `atconv` is the full operator, with the two 1×1 projections around it.

Axes: B batch, C channels, *S one to three axes of a map (a sequence N, an image H W, a volume D H W), N the
number of positions, K odd kernel size. Every function takes any floating dtype, any B ≥ 0 and axes of 1 or
more, and is differentiable twice. `causal_context` and `causal_depthwise_conv` are for sequences in which an
output depends on the past alone.

Source: "Attentive Convolution: Unifying the Expressivity of Self-Attention with Convolutional
Efficiency", arXiv 2510.20092, for two axes, stride 1 and as many bins as weights; the rest is this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from atconv.ops import causal, checking
from atconv.ops import dynamic_depthwise_conv as ops
from atconv.ops.checking import per_axis
from atconv.ops.context_pooling import pool
from atconv.ops.layout import both_ends
from atconv.ops.static_conv import pointwise_conv
from atconv.ops.tracing import is_symbolic

__all__ = [
    "atconv",
    "causal_context",
    "causal_depthwise_conv",
    "context_to_kernel",
    "dynamic_depthwise_conv",
    "generate_kernel",
    "lateral_inhibition",
    "pool_context",
    "project_channels",
]


def pool_context(x: Tensor, bins: int, grid: list[int] | None = None) -> Tensor:
    """Average the raster-ordered positions of a map into `bins` equal stretches.

    Bin i covers positions ⌊i·N/bins⌋ up to ⌈(i+1)·N/bins⌉ of the flattened map: one-dimensional,
    row after row. With fewer positions than bins, bins repeat positions.

    Args:
        x: map, B C *S.
        bins: number of bins n ≥ 1, K² for a K×K kernel.
        grid: number of cells along each axis, n in all: average the cells of this grid instead, row by row.
            The released weights take the stretches.

    Returns:
        context, B C n.

    Raises:
        ValueError: `x` is not B C *S or is an empty map, `bins` < 1, or `grid` has another number of axes or
            cells.
        TypeError: `x` is not floating point.
    """
    if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
        checking.check_map(x)
        checking.check_bins(x, bins, grid)
    return pool(x, bins, grid)


def context_to_kernel(
    context: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    generator_weight: Tensor,
    generator_bias: Tensor | None,
    activation: Callable[[Tensor], Tensor] = F.gelu,
    kernel_size: Sequence[int] | None = None,
) -> Tensor:
    """Translate pooled context into one K×K kernel for each sample and channel (C2K).

    k = G · activation(W c + b) + g, where W mixes the channels inside each bin and G, shared by all
    channels, mixes the bins; the values of a channel fill its kernel row by row.

    Args:
        context: B C n (from `pool_context`).
        weight, bias: W (D C) and b (D, or None): D = C kernels, or fewer that groups of channels share.
        generator_weight, generator_bias: G (K² n) and g (K², D K² for a bias of each kernel, or None). The
            paper has n = K² bins.
        activation: elementwise function; exact GELU in AttNet, tanh GELU in SiT.
        kernel_size: K of each axis; default: a square.

    Returns:
        kernels, B D *K.

    Raises:
        ValueError: the shapes do not fit together, or G does not fill a kernel of odd sizes.
    """
    weights = generator_weight.shape[0]
    sizes = tuple(kernel_size) if kernel_size is not None else 2 * (round(int(weights) ** 0.5),)
    checking.check_context(context, weight, generator_weight, sizes)
    # Contiguous: CPUs multiply strided bfloat16 many times slower.
    mixed = F.linear(context.transpose(1, 2).contiguous(), weight, bias)
    return generate_kernel(activation(mixed), generator_weight, generator_bias).unflatten(2, sizes)


def generate_kernel(mixed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The second half of `context_to_kernel`: mix the bins of every channel into its kernel.

    Args:
        mixed: activated context with channels last, B n C.
        weight, bias: G (K² n) and g (K², C K², or None).

    Returns:
        kernels row by row, B C K².
    """
    # From the left: the transpose of `mixed` would be strided, see above. One product for each sample: `@`
    # makes one of all, and copies twice for it.
    kernel = weight @ mixed if is_symbolic() else torch.bmm(weight.expand(mixed.shape[0], -1, -1), mixed)
    if bias is not None:  # before the transpose: OpenVINO's int8 rejects a bias behind it
        kernel = kernel + (bias[:, None] if bias.ndim == 1 else bias.mT)
    return kernel.transpose(1, 2)


def lateral_inhibition(kernel: Tensor, alpha: Tensor | None) -> Tensor:
    """Let the weights of each kernel compete: k − sigmoid(α)·mean(k) (differential kernel modulation).

    Args:
        kernel: B C *K.
        alpha: C, one learned number a kernel; λ = sigmoid(α) is the strength, 0.5 at α = 0. None for none:
            the kernels as they are.

    Returns:
        modulated kernels, B C *K, in the promoted dtype of both.

    Raises:
        ValueError: `kernel` is not B C *K or `alpha` is not C.
    """
    if alpha is None:
        return kernel
    if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
        checking.check_alpha(alpha, kernel)
    axes = list(range(2, kernel.ndim))
    strength = torch.sigmoid(alpha).reshape([-1] + [1] * len(axes))
    return kernel - strength * kernel.mean(dim=axes, keepdim=True)


def dynamic_depthwise_conv(
    x: Tensor,
    kernel: Tensor,
    alpha: Tensor | None = None,
    stride: int | list[int] = 1,
    dilation: int | list[int] = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Cross-correlate every channel of every sample with its own kernel.

    y[b,c,p] = Σ_δ kernel[b,c,δ] · x[b,c,stride·p + dilation·δ], δ from −⌊K/2⌋ to ⌊K/2⌋ along each axis.
    Beyond the border x is zero, or what `padding_mode` says. With stride 1 the map keeps its size, else each
    axis has ⌈size / stride⌉ positions. Channels-last in gives channels-last out.

    Args:
        x: map, B C *S.
        kernel: B G *K, or 1 G *K for the same kernels in every sample; G = C, or a divisor of it: C / G
            neighboring channels share a kernel. Cast to the dtype of `x`.
        alpha: G, for `lateral_inhibition` of the kernels first, which costs no pass where Triton computes it.
        stride, dilation: for all axes, or one number each.
        padding_mode: zeros, reflect, replicate or circular, as `torch.nn.Conv2d` names them.

    Returns:
        map, B C *S', dtype of `x`.

    Raises:
        ValueError: the shapes do not fit together, a K is even, an option is out of range, or an axis is too
            short for its padding.
        TypeError: `x` is not floating point.
    """
    axes = x.ndim - 2
    if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
        checking.check_map(x)
        checking.check_kernel(kernel, x)
    strides, dilations = per_axis(stride, axes, "stride"), per_axis(dilation, axes, "dilation")
    padding = [dilations[i] * (kernel.shape[2 + i] // 2) for i in range(axes)]
    if padding_mode != "zeros":
        if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
            checking.check_padding(x, padding, padding_mode)
        x, padding = F.pad(x, both_ends(padding), padding_mode), [0] * axes
    if not torch.jit.is_scripting():
        by_triton = ops.triton_computes(x, kernel, strides, padding, dilations)
        if by_triton:
            if alpha is not None:
                checking.check_alpha(alpha, kernel)
            return ops.triton(x, kernel, alpha)
    kernel = lateral_inhibition(kernel, alpha)
    kernel = ops.share_kernels(kernel, x).to(x.dtype)
    return ops.dynamic_depthwise_conv(x, kernel, strides, padding, dilations)


def causal_context(x: Tensor, bins: int, chunk: int = 1) -> Tensor:
    """Means over the past of a sequence, from which a causal kernel is made: one context for every `chunk`
    positions.

    The context of positions m·chunk … (m+1)·chunk − 1 holds what lies at or before m·chunk: bin i is
    Σ_s β_i^(m·chunk − s) x_s / Σ_s β_i^(m·chunk − s) over s ≤ m·chunk, with memory β_i = 1 − 2^−i and β = 1
    for the last bin, the plain mean. Bin 0 is the position itself. From here to `causal_depthwise_conv` a
    chunk counts as a sample, so the steps between take them as they are.

    Args:
        x: sequence, B C N.
        bins: number of memories n ≥ 1.
        chunk: positions that share a context.

    Returns:
        B·M C n with M = ⌈N / chunk⌉, the chunks of a sequence one after another.

    Raises:
        ValueError: `x` is not B C N, or `bins` or `chunk` < 1.
        TypeError: `x` is not floating point.
    """
    checking.check_sequence(x, bins, chunk)
    return causal.running_means(x, bins, chunk).permute(0, 3, 1, 2).flatten(0, 1)


def causal_depthwise_conv(
    x: Tensor,
    kernel: Tensor,
    alpha: Tensor | None = None,
    chunk: int = 1,
    dilation: int | list[int] = 1,
) -> Tensor:
    """Cross-correlate every channel with kernels that reach back only and change along the sequence.

    y[b,c,t] = Σ_i kernel[b,c,⌊t/chunk⌋,i] · x[b,c,t − (K−1−i)·dilation], with zeros before the sequence: the
    last weight is that of the position itself.

    Args:
        x: sequence, B C N.
        kernel: B·M G K with M = ⌈N / chunk⌉, or 1 G K for the same kernels everywhere; G and `alpha` as in
            `dynamic_depthwise_conv`. Cast to the dtype of `x`.
        chunk: positions that share a kernel.
        dilation: distance of the weights.

    Returns:
        sequence, B C N, dtype of `x`.

    Raises:
        ValueError: the shapes do not fit together.
        TypeError: `x` is not floating point.
    """
    checking.check_map(x)
    checking.check_causal_kernel(x, kernel, chunk)
    kernel = lateral_inhibition(kernel, alpha)
    kernel = ops.share_kernels(kernel, x).to(x.dtype)
    return causal.causal_depthwise_conv1d(x, kernel, chunk, per_axis(dilation, 1, "dilation")[0])


def project_channels(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution: B C *S with weight (D C) or (D C 1 1) and bias (D, or None) → B D *S."""
    weight = weight.reshape(*weight.shape[:2], *[1] * (x.ndim - 2))
    if x.ndim == 4:
        return pointwise_conv(x, weight, bias)
    return (F.conv1d if x.ndim == 3 else F.conv3d)(x, weight, bias)


def atconv(
    x: Tensor,
    context_weight: Tensor | None,
    context_bias: Tensor | None,
    generator_weight: Tensor | None,
    generator_bias: Tensor | None,
    alpha: Tensor | None,
    value_weight: Tensor | None,
    value_bias: Tensor | None,
    output_weight: Tensor | None,
    output_bias: Tensor | None,
    activation: Callable[[Tensor], Tensor] = F.gelu,
    *,
    static_kernel: Tensor | None = None,
    kernel_size: Sequence[int] | None = None,
    context_grid: list[int] | None = None,
    stride: int | list[int] = 1,
    dilation: int | list[int] = 1,
    padding_mode: str = "zeros",
    causal: bool = False,
    chunk: int = 1,
) -> Tensor:
    """The full operator: pool, make the kernels, inhibit, convolve the values, project.

    Pools before it projects: both are affine and averaging weights sum to 1, so this equals
    projecting all N positions and pooling afterwards, for n·C² multiply-adds in place of N·C².
    It takes every option of the modules for maps. `ATConvTokens` is the same on another layout.

    Args:
        x: map, B C *S.
        context_weight, context_bias: W_k (G C) and b_k (G), G = C or a divisor; None without routing.
        generator_weight, generator_bias: G (K² n) and g (K² or G K²); None without routing.
        alpha: G, or None for no lateral inhibition (λ = 0).
        value_weight, value_bias: W_v (C C, or with axes of length 1) and b_v (C); None for v = x.
        output_weight, output_bias: W_o (D C, or with axes of length 1) and b_o (D); a bias alone is added
            without a projection.
        activation: between W_k and G.
        static_kernel: G *K for no adaptive routing: the same kernels for every sample.
        kernel_size: K of each axis; default: the same for all axes of `x`.
        context_grid: the grid of `pool_context`.
        stride, dilation, padding_mode: as in `dynamic_depthwise_conv`.
        causal: by `causal_context` and `causal_depthwise_conv`, for a sequence, a `kernel_size` of one axis,
            stride 1, padding with zeros, and no `context_grid`.
        chunk: positions that share a kernel, of a causal operator.

    Returns:
        map, B D *S'.

    Raises:
        ValueError, TypeError: as the steps do; ValueError too unless either `static_kernel` is given, or
            both `context_weight` and `generator_weight`, and where `causal` meets an option it does not take.
    """
    if causal:
        checking.check_causal(per_axis(stride, 1, "stride"), padding_mode, context_grid)
    if context_weight is not None and generator_weight is not None and static_kernel is None:
        weights, bins = generator_weight.shape
        if kernel_size is None:
            axes = x.ndim - 2
            kernel_size = axes * (round(int(weights) ** (1 / max(axes, 1))),)
        context = causal_context(x, bins, chunk) if causal else pool_context(x, bins, context_grid)
        generator = generator_weight, generator_bias
        kernel = context_to_kernel(context, context_weight, context_bias, *generator, activation, kernel_size)
    elif context_weight is None and generator_weight is None and static_kernel is not None:
        kernel = static_kernel[None]
    else:
        raise ValueError(
            "atconv: give context_weight and generator_weight for adaptive routing, or static_kernel alone"
        )
    value = x if value_weight is None else project_channels(x, value_weight, value_bias)
    if causal:
        routed = causal_depthwise_conv(value, kernel, alpha, chunk, dilation)
    else:
        routed = dynamic_depthwise_conv(value, kernel, alpha, stride, dilation, padding_mode)
    if output_weight is not None:
        return project_channels(routed, output_weight, output_bias)
    return routed if output_bias is None else routed + output_bias.reshape(-1, *[1] * (x.ndim - 2))


# Steps whose checks and forms depend on shapes are single nodes of a graph that torch.fx traces.
for _step in __all__:
    torch.fx.wrap(_step)
