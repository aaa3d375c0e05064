"""Any timm model as the backbone of a dense task: its feature maps, its strides, its weights."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from numbers import Integral
from typing import Any

import timm
import torch
from timm.layers import Format
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

__all__ = [
    "Pyramid",
    "check_any_size",
    "check_counts",
    "check_model_name",
    "feature_strides",
    "load_classifier_weights",
    "make_features",
    "min_batch",
    "pyramid_strides",
]


class Pyramid(nn.Module):
    """Feature maps of a timm backbone, joined by a feature pyramid; what torchvision's detectors stand on.

    Args:
        body: a timm model made with `features_only=True`.
        channels: of every map of the pyramid.
        extra: makes additional, coarser maps.
    """

    def __init__(self, body: nn.Module, channels: int, extra: ExtraFPNBlock) -> None:
        super().__init__()
        info: Any = body.feature_info
        self.body = body
        self.fpn = FeaturePyramidNetwork(info.channels(), channels, extra, norm_layer=nn.BatchNorm2d)
        self.out_channels = channels
        self.channels_last = getattr(body, "output_fmt", None) == Format.NHWC  # Swin and its family

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """B C H W → maps by name, "0" the finest, then what `extra` adds."""
        maps = self.body(x)
        if self.channels_last:
            maps = [feature_map.permute(0, 3, 1, 2).contiguous() for feature_map in maps]
        return self.fpn(OrderedDict((str(i), feature_map) for i, feature_map in enumerate(maps)))


def make_features(
    name: str,
    in_chans: int,
    levels: int,
    backbone_args: Mapping[str, Any],
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The last `levels` feature maps of a timm model.

    Args:
        name: model by timm's name.
        in_chans: channels of the input image.
        levels: how many of its maps, counted from the coarsest.
        backbone_args: additional arguments of the model, such as {"stem_stride": 2}.
        state_dict: weights of the classifier, under its own names.

    Raises:
        ValueError: no such model, it has no such maps, takes no such arguments, or weights do not fit.
        TypeError: state_dict does not map names to tensors.
    """
    count = len(feature_strides(name, backbone_args))
    if not 1 <= levels <= count:
        raise ValueError(f"{name} has {count} feature maps: levels must lie in 1 … {count}, got {levels}")
    indices = tuple(range(count - levels, count))
    body = _create(name, {**backbone_args, "in_chans": in_chans, "out_indices": indices})
    if state_dict is not None:
        load_classifier_weights(body, name, state_dict)
    return body


def _create(name: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return timm.create_model(name, **{**arguments, "features_only": True})
    except (TypeError, AttributeError, AssertionError) as error:
        message = f"{name} with {dict(arguments)} gives no feature maps: {error}"
        if "drop_path_rate" in str(error):
            message += ". It has no stochastic depth: leave drop_path_rate out (--drop-path-rate 0)"
        raise ValueError(message) from error


def load_classifier_weights(body: nn.Module, name: str, state_dict: Mapping[str, Tensor]) -> None:
    """Load the weights of a classifier into its feature maps. A few that are missing are named in a warning.

    timm's feature networks are the classifier's layers under other names: `stages_0` or `model.stages.0` for
    `stages.0`.

    Args:
        body: a timm model made with `features_only=True`.
        name: of the model, for messages.
        state_dict: weights of the classifier, under its own names.

    Raises:
        ValueError: more than half of the weights are missing, or one has another shape.
        TypeError: state_dict does not map names to tensors.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"weights are tensors by name, as state_dict() gives them, got {state_dict!r:.60}")
    tensors = {_flat(key): value for key, value in state_dict.items() if isinstance(value, Tensor)}
    matched = {key: tensors[_flat(key)] for key in body.state_dict() if _flat(key) in tensors}
    parameters = [key for key, _ in body.named_parameters()]
    missing = [key for key in parameters if key not in matched]
    message = f"{len(missing)} of {len(parameters)} parameters of {name} are not among the weights"
    if 2 * len(missing) > len(parameters):
        raise ValueError(
            f"the weights do not fit {name}: {message}, such as {missing[0]}; they hold "
            f"{', '.join(list(state_dict)[:3])}, … Give state_dict() of the classifier, as it is"
        )
    try:
        body.load_state_dict(matched, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {name}: {str(error).splitlines()[-1].strip()}") from error
    if missing:
        warnings.warn(f"{message} and are newly initialized: {', '.join(missing[:5])}", stacklevel=2)


def _flat(key: str) -> str:
    return re.sub(r"^(model|body)\.", "", key).replace(".", "_")


def check_counts(**counts: Any) -> None:
    """Raise ValueError unless all are whole numbers from 1 on."""
    if any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in counts.values()):
        values = ", ".join(repr(count) for count in counts.values())
        raise ValueError(f"{', '.join(counts)} must be whole numbers, at least 1, got {values}")


def check_model_name(name: str) -> None:
    """Raise ValueError where timm knows no such model."""
    if not timm.is_model(name):
        raise ValueError(
            f"timm knows no model {name!r}; AttNet's are {', '.join(timm.list_models('attnet*'))}"
        )


def feature_strides(name: str, backbone_args: Mapping[str, Any]) -> list[int]:
    """Strides of all feature maps that a timm model has, the finest first.

    Raises:
        ValueError: no such model, it has no such maps or takes no such arguments.
    """
    check_model_name(name)
    with torch.device("meta"):
        info = _create(name, backbone_args).feature_info
    return [int(info.reduction(i)) for i in range(len(info))]  # reduction() lists those timm gives by default


def pyramid_strides(body: nn.Module, name: str) -> list[int]:
    """Strides of a backbone's feature maps.

    Raises:
        ValueError: they are no powers of two of which each is twice the one before.
    """
    info: Any = body.feature_info
    strides = [int(stride) for stride in info.reduction()]
    if strides[0] & (strides[0] - 1) or any(b != 2 * a for a, b in pairwise(strides)):
        raise ValueError(
            f"the feature maps of {name} have strides {strides}: a pyramid needs powers of two, each twice "
            "the one before. AttNet, ResNet, ConvNeXt and Swin have such"
        )
    return strides


def min_batch(model: nn.Module, name: str, shape: tuple[int, int, int]) -> int:
    """Images that a batch needs: 2 where batch norm in training mode sees a map of one position, of which it
    can learn nothing.

    Args:
        model: on the meta device: nothing is computed.
        name: of the model, for messages.
        shape: channels, height and width of the images.

    Raises:
        ValueError: the model does not take such images.
    """
    sizes = [2]

    def record(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if norm.training:
            sizes.append(inputs[0].shape[2:].numel())

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(record)
    try:
        with torch.no_grad():
            model(torch.empty(2, *shape, device="meta"))
    except NotImplementedError:  # an operation that needs values
        return 1
    except Exception as error:  # whatever the model raises
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name} does not take images of {shape[1]} × {shape[2]} pixels: {reason}"
        ) from error
    return 2 if min(sizes) == 1 else 1


def check_any_size(body: nn.Module, name: str, in_chans: int) -> None:
    """Raise ValueError where a backbone does not take images of any size. Nothing is computed."""
    height, width = 160, 352  # multiples of 32, of no usual window or training size
    state = {n: t.to("meta") for n, t in [*body.named_parameters(), *body.named_buffers()]}
    images = torch.empty(1, in_chans, height, width, device="meta")
    try:
        with torch.no_grad():
            torch.func.functional_call(body, state, (images,))
    except Exception as error:  # whatever the model raises
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name} does not take images of {height} × {width} pixels: {reason}. AttNet, ResNet, ConvNeXt "
            "and PVTv2 take any size, and so does Swin with strict_img_size: false"
        ) from error
