"""Convolutions of a model, and the ATConv that stands in their place and computes their function at first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from atconv.modules import ATConv2d
from atconv.ops.depthwise_conv import DepthwiseConv2d
from atconv.ops.plain import is_plain
from atconv.replace.start import start_at

__all__ = ["ATConvConvolution", "ConvolutionSite", "convolution_sites", "default_convolutions"]

_KINDS = (nn.Conv2d, DepthwiseConv2d)


@dataclass(eq=False)
class ConvolutionSite:
    """A convolution of a model: replaced by what `make` returns, or kept for a reason."""

    name: str
    make: Callable[[], nn.Module] | None = None
    copied: bool = False
    """ATConv computes the same at first"""
    reason: str = ""
    hooks: tuple[()] = ()
    explained: None = None
    exact: bool = False
    determined: bool = True


class ATConvConvolution(ATConv2d):
    """An ATConv that stands where a convolution was."""


def convolution_sites(model: nn.Module) -> list[ConvolutionSite]:
    """Every convolution of a model that is larger than 1×1, in order of its modules."""
    return [
        ConvolutionSite(name, reason="it is ATConv already") if is_ours else _site(name, module)
        for name, module in model.named_modules()
        if (is_ours := isinstance(module, ATConvConvolution))
        or (isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1)
    ]


def default_convolutions(sites: list[ConvolutionSite]) -> list[ConvolutionSite]:
    """Depthwise convolutions, else dense ones but the first of the model."""
    able = [site for site in sites if site.make is not None]
    return [site for site in able if site.copied] or [site for site in able if site is not sites[0]]


def _site(name: str, module: Any) -> ConvolutionSite:
    same = tuple(d * (size // 2) for d, size in zip(module.dilation, module.kernel_size, strict=True))
    depthwise = module.groups == module.in_channels == module.out_channels
    reason = ""
    if not any(is_plain(module, kind) for kind in _KINDS):
        reason = f"it is a {type(module).__name__} that computes more than a convolution, or has hooks"
    elif not name:
        reason = "it is the model itself, which cannot change in place: replace in nn.Sequential(model)"
    elif not depthwise and module.groups == module.in_channels > 1:
        many = module.out_channels // module.in_channels
        reason = f"it makes {many} maps of each channel: ATConv for single channels makes one"
    elif not depthwise and module.groups != 1:
        reason = f"it has {module.groups} groups: ATConv takes 1, or one for each channel"
    elif any(size % 2 == 0 for size in module.kernel_size):
        reason = f"its kernel of {module.kernel_size} is even"
    elif module.padding not in ("same", same):
        reason = f"its padding of {module.padding} does not keep the center of its kernel: {same} would"
    if reason:
        return ConvolutionSite(name, reason=reason)
    build = _from_depthwise if depthwise else _from_dense
    return ConvolutionSite(name, make=lambda: build(module), copied=depthwise)


def _empty(conv: Any, projections: bool) -> ATConvConvolution:
    """ATConv with the options of a convolution, on its device and in its dtype, without routing at first."""
    mixer = ATConvConvolution(
        conv.in_channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        dilation=conv.dilation,
        padding_mode=conv.padding_mode,
        projections=projections,
        kernel_bias=True,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    return mixer.train(conv.training)


@torch.no_grad()
def _from_depthwise(conv: Any) -> ATConvConvolution:
    mixer: Any = _empty(conv, projections=False)
    start_at(mixer, conv.weight[:, 0].flatten(1))
    if conv.bias is not None:
        mixer.bias.copy_(conv.bias)
    return mixer


@torch.no_grad()
def _from_dense(conv: Any) -> ATConvConvolution:
    """For each input channel, the kernel and the weights of outputs whose product is nearest to its own."""
    mixer: Any = _empty(conv, projections=True)
    of_inputs = conv.weight.flatten(2).transpose(0, 1)  # in out K²
    if not of_inputs.is_meta:
        outputs, sizes, kernels = torch.linalg.svd(of_inputs.float(), full_matrices=False)
        start_at(mixer, kernels[:, 0])
        mixer.proj.weight.copy_((outputs[..., 0] * sizes[:, :1]).T[..., None, None])
        nn.init.dirac_(mixer.value_proj.weight)
    nn.init.zeros_(mixer.value_proj.bias)
    mixer.proj.bias.zero_() if conv.bias is None else mixer.proj.bias.copy_(conv.bias)
    return mixer
