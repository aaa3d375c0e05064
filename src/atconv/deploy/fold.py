"""Exact folding for inference: the same function in fewer passes over memory."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, LayerScale2d, RmsNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from atconv.models.attnet import AttNet, AttNetBlock, AttNetStage, ConvGLU, Stem
from atconv.modules import ATConv2d
from atconv.ops.gated_product import GELU, project_gated
from atconv.ops.gated_unit import WHOLE
from atconv.ops.plain import is_plain
from atconv.ops.static_conv import DepthwiseConv2d, PointwiseConv2d

__all__ = ["FoldedConvGLU", "fold"]

_Norm = TypeVar("_Norm", bound=LayerNorm2d)


def fold(model: AttNet) -> AttNet:
    """Fold an AttNet's normalizations and scales into the neighboring layers, for inference.

    >>> model = timm.create_model("attnet_t2").eval()
    >>> fast = atconv.deploy.fold(model)                # same outputs; `model` stays as it is

    BatchNorm goes into the convolution before it, LayerNorm's affine part into the projections after it,
    LayerScale into the projection before it, RMSNorm's weight into the projection after it. Gated units get
    channels of zeros, up to a multiple of 8. The result cannot be trained.

    Args:
        model: in eval mode. Blocks with other token mixers than ATConv keep the norm before the mixer.

    Returns:
        a folded copy, channels-last. Its layers have the names they have in the model, its weights do not.

    Raises:
        TypeError: the model is no AttNet.
        ValueError: it is in training mode, folded already, or altered: another activation than GELU
            in a gate, other norms, or hooks on layers that folding replaces.
    """
    if not isinstance(model, AttNet):
        raise TypeError(f"fold takes an AttNet, got {type(model).__name__}")
    if model.training or any(isinstance(m, nn.BatchNorm2d) and m.training for m in model.modules()):
        raise ValueError("fold takes a model in eval mode, whose BatchNorms have settled. Call model.eval()")
    if any(isinstance(module, FoldedConvGLU) for module in model.modules()):
        raise ValueError("this model is folded already")
    _check_layers(model)
    folded: Any = copy.deepcopy(model).requires_grad_(False)
    before = dict(folded.named_modules())
    stem = folded.stem
    stem.conv1, stem.norm1 = fuse_conv_bn_eval(stem.conv1, stem.norm1), nn.Identity()
    stem.conv2, stem.norm2 = fuse_conv_bn_eval(stem.conv2, stem.norm2), nn.Identity()
    for stage in folded.stages:
        _fold_stage(stage)
    _reject_lost_hooks(before, set(folded.modules()))
    return folded.to(memory_format=torch.channels_last)


class FoldedConvGLU(nn.Module):
    """`ConvGLU` for inference, with the norm before it and the LayerScale behind it. B C H W → same.

    Args:
        glu: the channel mixer to fold.
        norm: before it; its affine part goes into the first projections.
        scale: LayerScale behind it, or nothing; it goes into the last projection.
    """

    def __init__(self, glu: ConvGLU, norm: LayerNorm2d, scale: nn.Module) -> None:
        super().__init__()
        gate, value = _absorb_affine(glu.gate_proj, norm), _absorb_affine(glu.value_proj, norm)
        self.hidden, self.act = glu.hidden, glu.act
        last = _absorb_scale(glu.proj, scale)
        weight, bias = _weights(last)
        self.eps: float | None = None
        if isinstance(glu.norm, RmsNorm2d):
            self.eps = glu.norm.eps
            weight = weight * glu.norm.weight.double()[:, None, None]
        dwconv = glu.dwconv
        extra = 0
        if is_plain(dwconv, DepthwiseConv2d):
            extra = -self.hidden % WHOLE
            dwconv = _widened_depthwise(dwconv, extra)
        # The mean that the norm divides by is over the new channels too.
        share = (1 + extra / self.hidden) ** 0.5 if self.eps is not None else 1.0
        self.gate_proj = _with(gate, *(_widened(each, extra) for each in _weights(gate)))
        self.value_proj = _with(value, *(share * _widened(each, extra) for each in _weights(value)))
        self.dwconv = dwconv
        self.proj = _with(last, F.pad(weight, (0, 0, 0, 0, 0, extra)) / share, bias)

    def macs(self, height: int, width: int) -> int:
        taps = 0 if isinstance(self.dwconv, nn.Identity) else 9
        return height * width * self.hidden * (3 * self.proj.out_channels + taps)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.gate_proj(x)), self.value_proj(x)
        proj = self.proj
        if not torch.jit.is_scripting():  # noqa: SIM102  # what stands inside is not scripted
            if self.eps is not None and is_plain(self.act, GELU) and is_plain(proj, PointwiseConv2d):
                return project_gated(gate, value, self.eps, proj.weight, proj.bias)
        product = self.act(gate) * value
        if self.eps is not None:
            product = product * torch.rsqrt(product.square().mean(1, keepdim=True) + self.eps)
        return proj(product)


def _check_layers(model: AttNet) -> None:
    """Raise ValueError where a layer is not one that AttNet makes."""
    for name, module in model.named_modules():
        if isinstance(module, ConvGLU) and getattr(module.act, "approximate", None) != "none":
            raise ValueError(f"fold takes gates with exact GELU, {name} has {module.act}")
        if not isinstance(module, (AttNetBlock, Stem)):
            continue
        accepted = LayerNorm2d if isinstance(module, AttNetBlock) else nn.BatchNorm2d
        for norm in ("norm1", "norm2"):
            layer = getattr(module, norm)
            if not isinstance(layer, accepted):
                raise ValueError(f"fold takes {accepted.__name__} at {name}.{norm}, it is {layer}")


def _reject_lost_hooks(before: dict[str, nn.Module], remaining: set[nn.Module]) -> None:
    """Raise ValueError where a replaced layer had hooks. Those by which torch prunes or normalizes weights
    have done their work."""
    for name, module in before.items():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        own = [hook for hook in hooks if not type(hook).__module__.startswith("torch.nn.utils.")]
        if module not in remaining and own:
            raise ValueError(f"{name} has hooks, and folding replaces that layer: remove them first")


def _fold_stage(stage: AttNetStage) -> None:
    if isinstance(stage.downsample, nn.Sequential):
        conv, norm = stage.downsample
        stage.downsample = nn.Sequential(fuse_conv_bn_eval(conv, norm))  # type: ignore[type-var, arg-type]
    blocks: Any = stage.blocks
    for block in blocks:
        _fold_block(block)


def _fold_block(block: AttNetBlock) -> None:
    mixer, norm1, norm2 = block.token_mixer, block.norm1, block.norm2
    if isinstance(mixer, ATConv2d):
        for name in ("context_proj", "value_proj"):  # averages of an affine function's values are its value
            if getattr(mixer, name) is not None:
                setattr(mixer, name, _absorb_affine(getattr(mixer, name), norm1))
        mixer.proj = _absorb_scale(mixer.proj, block.ls1)
        block.norm1, block.ls1 = _without_affine(norm1), nn.Identity()
    block.channel_mixer = FoldedConvGLU(block.channel_mixer, norm2, block.ls2)  # type: ignore[assignment]
    block.norm2, block.ls2 = _without_affine(norm2), nn.Identity()


def _absorb_affine(layer: Any, norm: LayerNorm2d) -> Any:
    """The layer of w·n + b, as a layer of n."""
    weight, bias = _weights(layer)
    flat = weight.flatten(1)
    gain, shift = norm.weight.double(), norm.bias.double()
    return _with(layer, (flat * gain).view_as(weight), bias + flat @ shift)


def _absorb_scale(layer: Any, scale: nn.Module) -> Any:
    """γ·layer, as a layer."""
    weight, bias = _weights(layer)
    if isinstance(scale, LayerScale2d):
        gamma = scale.gamma.double()
        weight, bias = weight * gamma.view(-1, *[1] * (weight.ndim - 1)), bias * gamma
    return _with(layer, weight, bias)


def _weights(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer or 1×1 convolution, in float64."""
    weight = layer.weight.double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.double()
    return weight, bias


def _with(layer: Any, weight: Tensor, bias: Tensor) -> Any:
    """A plain layer of the same kind, with other weights."""
    sizes = weight.shape[1], len(weight)
    made: Any = nn.Linear(*sizes, device="meta")
    if weight.ndim == 4:
        made = PointwiseConv2d(*sizes, 1, device="meta")
    made.weight, made.bias = (nn.Parameter(t.to(layer.weight), requires_grad=False) for t in (weight, bias))
    return made


def _widened(t: Tensor, extra: int) -> Tensor:
    """A weight or bias with so many more outputs, which are zero."""
    return torch.cat([t, t.new_zeros(extra, *t.shape[1:])])


def _widened_depthwise(layer: DepthwiseConv2d, extra: int) -> DepthwiseConv2d:
    channels, size = layer.out_channels + extra, layer.weight.shape[2]
    made = DepthwiseConv2d(channels, channels, size, padding=size // 2, groups=channels, device="meta")
    assert layer.bias is not None
    made.weight, made.bias = (
        nn.Parameter(_widened(t.detach(), extra), requires_grad=False) for t in (layer.weight, layer.bias)
    )
    return made


def _without_affine(norm: _Norm) -> _Norm:
    return type(norm)(norm.normalized_shape[0], eps=norm.eps, affine=False).eval()
