"""Convolutions of a model, and the ATConv that stands in their place and computes their function at first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atconv.modules import ATConv1d, ATConv2d, ATConv3d
from atconv.modules.base import ATConv
from atconv.ops.plain import is_plain
from atconv.ops.static_conv import DepthwiseConv2d, PointwiseConv2d
from atconv.replace.place import Place
from atconv.replace.start import check_finite, in_double, is_rounding, start_at

__all__ = [
    "ATConvConvolution",
    "ConvolutionSite",
    "build_convolution",
    "convolution_sites",
    "default_convolutions",
]

_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, DepthwiseConv2d, PointwiseConv2d)


@dataclass(eq=False)
class ConvolutionSite(Place):
    """A convolution of a model."""

    conv: Any = None
    depthwise: bool = False

    def measure(self, weight: Tensor, start: Tensor) -> None:
        """Compare the convolution's weights with those that ATConv starts from."""
        trained = in_double(weight)
        total, missed = float(trained.square().sum()), float((trained - start).square().sum())
        self.explained = max(0.0, 1 - missed / total) if total else 1.0
        self.exact = is_rounding(missed, total, weight.dtype)


class ATConvConvolution(ATConv):
    """An ATConv that stands where a convolution was. Its state says so, for `describe`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        mark = torch.ones((), dtype=torch.bool, device=options.get("device"))
        self.register_buffer("replaces_convolution", mark)


class ATConvConvolution1d(ATConvConvolution, ATConv1d):
    pass


class ATConvConvolution2d(ATConvConvolution, ATConv2d):
    pass


class ATConvConvolution3d(ATConvConvolution, ATConv3d):
    pass


_OF_AXES = (ATConvConvolution1d, ATConvConvolution2d, ATConvConvolution3d)


def convolution_sites(model: nn.Module) -> list[ConvolutionSite]:
    """Every convolution of a model that is larger than 1×1, in order of its modules."""
    users = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    return [
        ConvolutionSite(name, reason="it is ATConv already")
        if is_ours
        else _examine(name, module, shared=users[id(module.weight)] > 1)
        for name, module in model.named_modules()
        if (is_ours := isinstance(module, ATConvConvolution))
        or (isinstance(module, _KINDS) and max(module.kernel_size) > 1)
    ]


def default_convolutions(model: nn.Module, sites: list[ConvolutionSite]) -> list[ConvolutionSite]:
    """Depthwise convolutions, else dense ones but the first of the model, and but one that makes its output:
    no layer with weights comes after it."""
    able = [site for site in sites if not site.reason]
    last = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))][-1]
    inner = [site for site in able if site is not sites[0] and site.name != last]
    return [site for site in able if site.depthwise] or inner


@torch.no_grad()
def build_convolution(site: ConvolutionSite, **options: Any) -> nn.Module:
    """What stands in the place of a site's convolution, with `kernel_groups` and `context_bins` of ATConv.
    Sets how near the site starts."""
    conv = site.conv
    try:
        mixer: Any = _without_weights(conv, projections=not site.depthwise, **options)
        if not conv.weight.is_meta:
            check_finite(conv.weight, "its weights")
            start = (_start_depthwise if site.depthwise else _start_dense)(mixer, conv.weight)
            for weight in mixer.parameters():
                check_finite(weight, "weights at the start")
            site.measure(conv.weight, start)
        elif site.depthwise and mixer.kernel_groups == mixer.in_channels:
            site.explained, site.exact = 1.0, True
    except (TypeError, ValueError) as error:
        raise type(error)(f"nothing was replaced. {site.name}: {error}") from error
    bias = mixer.bias if site.depthwise else mixer.proj.bias
    bias.zero_() if conv.bias is None else bias.copy_(conv.bias)
    return mixer


def _examine(name: str, module: Any, shared: bool) -> ConvolutionSite:
    same = tuple(d * (size // 2) for d, size in zip(module.dilation, module.kernel_size, strict=True))
    depthwise = module.groups == module.in_channels == module.out_channels
    reason = ""
    if not any(is_plain(module, kind) for kind in _KINDS):
        reason = f"it is a {type(module).__name__} that computes more than a convolution, or has hooks"
    elif shared:
        reason = "another layer has the same weights"
    elif any(weight._backward_hooks or weight._post_accumulate_grad_hooks for weight in module.parameters()):
        reason = "its weights have hooks"
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
    return ConvolutionSite(name, conv=module, depthwise=depthwise)


def _without_weights(conv: Any, projections: bool, **options: Any) -> ATConvConvolution:
    """ATConv with the options of a convolution, on its device and in its dtype, without routing at first."""
    mixer = _OF_AXES[len(conv.kernel_size) - 1](
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
        **options,
    )
    return mixer.train(conv.training)


def _start_depthwise(mixer: Any, weight: Tensor) -> Tensor:
    """Channels that share a kernel start at the mean of theirs. Returns the weights C 1 *K of the start."""
    shared = in_double(weight).flatten(1).unflatten(0, (mixer.kernel_groups, -1))
    start = start_at(mixer, shared.mean(1))
    return start[:, None].expand_as(shared).reshape(weight.shape)


def _start_dense(mixer: Any, weight: Tensor) -> Tensor:
    """For each input channel, the kernel and the weights of outputs whose product is nearest to its own.
    Channels that share a kernel find it together. Returns the weights O I *K of the start."""
    of_inputs = weight.float().flatten(2).transpose(0, 1)  # I O K²
    together = of_inputs.unflatten(0, (mixer.kernel_groups, -1)).flatten(1, 2)
    outputs, sizes, kernels = torch.linalg.svd(together, full_matrices=False)
    start = start_at(mixer, kernels[:, 0])
    outputs = outputs[..., 0] * sizes[:, :1]
    mixer.proj.weight.copy_(outputs.reshape(of_inputs.shape[:2]).T.reshape(mixer.proj.weight.shape))
    nn.init.dirac_(mixer.value_proj.weight)
    nn.init.zeros_(mixer.value_proj.bias)
    each = start.repeat_interleave(mixer.in_channels // mixer.kernel_groups, 0)
    return (in_double(mixer.proj.weight).flatten(1)[..., None] * each).reshape(weight.shape)
