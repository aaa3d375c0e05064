"""`replace_attention` and `replace_convolution`: what to replace by what."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from atconv.replace.convolutions import build_convolution, convolution_sites, default_convolutions
from atconv.replace.counting import Example
from atconv.replace.families import find_sites
from atconv.replace.install import build
from atconv.replace.saving import record
from atconv.replace.start import fit_kernels
from atconv.replace.swap import ReplacementReport, Where, check_arguments, choose, nothing_replaced, swap

__all__ = ["replace_attention", "replace_convolution"]


def replace_attention(
    model: nn.Module,
    where: Where | None = None,
    every: int = 1,
    blocks: Collection[int] | None = None,
    kernel_size: int = 3,
    example: Example | None = None,
    start: Example | None = None,
) -> ReplacementReport:
    """Replace the self-attention of a model by ATConv, in place.

    >>> vit = timm.create_model("deit_small_patch16_224", pretrained=True)
    >>> print(atconv.replace_attention(vit))
    >>> print(atconv.replace_attention(vit, start=images))

    Value and output projections are taken over where their shapes allow, and kernels start near local
    averages, or with `start` at those nearest to what the attention does. What the attention routed beyond
    them is lost until it is learned: fine-tune the model. Cross-attention, and attention that mixes text
    with images, is kept, and the report says so. Where `where` asks for one that cannot be replaced, nothing
    is. Make optimizers and compile after the call. The model's config holds what was replaced, so that
    `atconv.replace.from_pretrained` opens what the model's own library saves.

    Args:
        model: timm's ViT, DeiT, BEiT, EVA, Swin, PVTv2, CoAtNet, MaxViT; torchvision's ViT and Swin;
            transformers' ViT, DeiT, BEiT, DINOv2, DINOv3 and their family; diffusers' DiT, PixArt, SD3,
            UNet2DConditionModel.
        where: (name, module) → whether to replace it; all that can be by default.
        every: take only each n-th of those that can be replaced, the last of every n.
        blocks: take only these, counted from 0 among those that can be replaced, in order. `where` does not
            change what `every` and `blocks` count.
        kernel_size: odd size of ATConv's kernels.
        example: an input of the model (a tensor, positional or named arguments) to count multiply-adds for;
            by default an image of the size it was made for. diffusers' models take more than an image.
        start: inputs of the model, such as a batch of training images. Each channel of each attention then
            starts at the static kernel that comes nearest, by least squares, to what the attention answers
            for them, with routing at zero. Means over positions, and class and register tokens, which read
            such, come before single positions. The report says how near, and how near local averages are;
            "exact" only where every token gets the same answer.

    Returns:
        what was replaced, and what was kept and why.

    Raises:
        ValueError: there is no attention, none was chosen, a chosen one cannot be replaced, or the model
            does not take the example.
        TypeError: an argument is of another kind.
    """
    check_arguments(model, where, example, "replace_attention")
    check_arguments(model, where, start, "replace_attention")
    _check_counts(every, blocks)
    sites = find_sites(model)
    if not sites:
        raise ValueError(f"{type(model).__name__} has no attention that could be replaced")
    chosen = choose(model, sites, where, "attentions", every, blocks)
    adapters = [build(model, site, kernel_size, kernel_bias=start is not None) for site in chosen]
    if start is not None:
        fit_kernels(model, chosen, adapters, start)
    note = "value and output projections are newly initialized in"
    report = swap(model, sites, chosen, adapters, example, note)
    record(model)
    return report


def replace_convolution(
    model: nn.Module,
    where: Where | None = None,
    example: Example | None = None,
    every: int = 1,
    blocks: Collection[int] | None = None,
    kernel_groups: int | None = None,
    context_bins: int | None = None,
) -> ReplacementReport:
    """Replace convolutions of a model by ATConv, in place.

    >>> convnext = timm.create_model("convnext_tiny", pretrained=True)
    >>> print(atconv.replace_convolution(convnext))

    A depthwise convolution becomes an ATConv without projections, whose kernels start as the trained one and
    whose routing starts at zero: the model computes the same until it is trained. A dense convolution becomes
    an ATConv with projections that starts at the nearest separable kernel: one kernel for each channel, then
    a 1×1 convolution. That is another function where the dense kernel is not separable. The report says how
    near each one starts: "exact", or the share of the squares of the trained weights that it has too. Stride,
    dilation and padding are those of the convolution. Make optimizers and compile after the call.

    Args:
        model: any that holds `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`: timm's and torchvision's CNNs,
            diffusers' UNets, decoders.
        where: (name, module) → whether to replace it; by default depthwise convolutions, where there is none
            the dense ones but the first, which sees the image, and one that makes the output: no layer with
            weights comes after it.
        example: as in `replace_attention`.
        every, blocks: as in `replace_attention`, counted among those of the default, or with `where` among
            all that can be replaced.
        kernel_groups, context_bins: as in `ATConv2d`, for all of them. With fewer kernels than channels a
            mixer is smaller, and a depthwise convolution starts at the mean kernel of each group.

    Returns:
        what was replaced, and what was kept and why.

    Raises:
        ValueError: there is no convolution larger than 1×1, none was chosen, a chosen one cannot be replaced,
            an option does not fit its channels, or the model does not take the example.
        TypeError: an argument is of another kind.
    """
    check_arguments(model, where, example, "replace_convolution")
    _check_counts(every, blocks)
    sites = convolution_sites(model)
    if not sites:
        raise ValueError(f"{type(model).__name__} has no convolution larger than 1×1")
    candidates = default_convolutions(model, sites) if where is None else sites
    if not candidates:
        first = "it sees the image or makes the output, choose it by `where`"
        raise nothing_replaced(model, {site.name: site.reason or first for site in sites})
    chosen = choose(model, candidates, where, "convolutions", every, blocks)
    options = {"kernel_groups": kernel_groups, "context_bins": context_bins}
    modules = [build_convolution(site, **options) for site in chosen]
    note = "the start is the nearest separable or shared kernel, another function, in"
    report = swap(model, sites, chosen, modules, example, note)
    record(model)
    return report


def _check_counts(every: Any, blocks: Any) -> None:
    if type(every) is not int or every < 1:
        raise ValueError(f"every must be at least 1, a whole number, got {every!r}")
    numbers = isinstance(blocks, Collection) and all(type(number) is int for number in blocks)
    if blocks is not None and not numbers:
        raise TypeError(f"blocks is a list of whole numbers, such as [0, 1], got {blocks!r}")
