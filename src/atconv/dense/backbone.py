"""Any timm model as the backbone of a dense task: its feature maps, its strides, its weights."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from atconv.models.attnet import AttNet
from atconv.models.release import load_release
from atconv.runs import Run

__all__ = [
    "Pyramid",
    "classifier_weights",
    "feature_strides",
    "make_features",
    "refuse_fixed_size",
    "strides_of",
    "trained_arguments",
]


class Pyramid(nn.Module):
    """Feature maps of a timm backbone, joined by a feature pyramid; what torchvision's detectors stand on.

    Args:
        body: a timm model made with `features_only=True`.
        channels: of every map of the pyramid.
        extra: makes further, coarser maps.
    """

    def __init__(self, body: nn.Module, channels: int, extra: ExtraFPNBlock) -> None:
        super().__init__()
        info: Any = body.feature_info
        self.body = body
        self.fpn = FeaturePyramidNetwork(info.channels(), channels, extra, norm_layer=nn.BatchNorm2d)
        self.out_channels = channels
        self.channels_last = getattr(body, "output_fmt", None) == Format.NHWC  # Swin and its kin

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """B C H W → maps by name, "0" the finest, then what `extra` adds."""
        maps = self.body(x)
        if self.channels_last:
            maps = [one.permute(0, 3, 1, 2).contiguous() for one in maps]
        return self.fpn(OrderedDict((str(i), one) for i, one in enumerate(maps)))


def make_features(
    name: str,
    in_chans: int,
    levels: int,
    arguments: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The last `levels` feature maps of a timm model.

    Args:
        name: model by timm's name.
        in_chans: channels of the input image.
        levels: how many of its maps, counted from the coarsest.
        arguments: further arguments of the model, such as {"stem_stride": 2}.
        weights: of the whole classifier; its own names.

    Raises:
        ValueError: no such model, it has no such maps, takes no such arguments, or weights do not fit.
        TypeError: weights are no tensors by name.
    """
    if weights is not None and not isinstance(weights, Mapping):
        raise TypeError(f"weights are tensors by name, as state_dict() gives them, got {weights!r:.60}")
    options: dict[str, Any] = {**arguments, "in_chans": in_chans, "features_only": True}
    if weights is not None:
        shown = {
            "state_dict": weights,
            "input_size": (in_chans, 224, 224),
        }  # else timm warns of other channels
        options |= {"pretrained": True, "pretrained_cfg_overlay": shown}
    count = len(feature_strides(name, arguments))
    if not 1 <= levels <= count:
        raise ValueError(f"{name} has {count} feature maps: levels must lie in 1 … {count}, got {levels}")
    if weights is not None:
        _check_weights(name, {**arguments, "in_chans": in_chans}, weights)
    try:
        return timm.create_model(name, **options, out_indices=tuple(range(count - levels, count)))
    except (TypeError, AttributeError, AssertionError) as error:
        raise _no_maps(name, arguments, error) from error
    except RuntimeError as error:
        if weights is None:
            raise
        raise ValueError(f"the weights do not fit {name}: {str(error).splitlines()[-1].strip()}") from error


def _check_weights(name: str, arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """timm starts afresh whatever is not among the weights. All of a classifier must be, but for its head."""
    with torch.device("meta"):
        classifier: Any = timm.create_model(name, **arguments)
    head = classifier.pretrained_cfg.get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    missing = [
        key
        for key in classifier.state_dict()
        if key not in weights and not any(key.startswith(f"{one}.") for one in heads)
    ]
    if missing:
        raise ValueError(
            f"the weights do not fit {name}: {len(missing)} of its tensors are not among them, such as "
            f"{missing[0]}; they hold {', '.join(list(weights)[:3])}, … Give state_dict() of a {name}"
        )


def _no_maps(name: str, arguments: Mapping[str, Any], error: Exception) -> ValueError:
    told = f"{name} with {dict(arguments)} gives no feature maps: {error}"
    if "drop_path_rate" in str(error):
        told += ". It has no stochastic depth: set drop_path to 0"
    return ValueError(told)


def feature_strides(name: str, arguments: Mapping[str, Any]) -> list[int]:
    """Strides of all feature maps that a timm model has, the finest first.

    Raises:
        ValueError: no such model, it has no such maps or takes no such arguments.
    """
    if not timm.is_model(name):
        raise ValueError(
            f"timm knows no model {name!r}; AttNet's are {', '.join(timm.list_models('attnet*'))}"
        )
    try:
        with torch.device("meta"):
            whole: Any = timm.create_model(name, **{**arguments, "features_only": True})
    except (TypeError, AttributeError, AssertionError) as error:
        raise _no_maps(name, arguments, error) from error
    info = whole.feature_info
    return [int(info.reduction(i)) for i in range(len(info))]  # reduction() alone tells those of a default


def strides_of(body: nn.Module, name: str) -> list[int]:
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


def refuse_fixed_size(body: nn.Module, name: str, in_chans: int) -> None:
    """Raise ValueError where a backbone does not take pictures of any size. Nothing is computed."""
    height, width = 160, 352  # multiples of 32, of no usual window or training size
    state = {n: t.to("meta") for n, t in [*body.named_parameters(), *body.named_buffers()]}
    images = torch.empty(1, in_chans, height, width, device="meta")
    try:
        with torch.no_grad():
            torch.func.functional_call(body, state, (images,))
    except Exception as error:  # whatever the model raises
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name} does not take pictures of {height} × {width} pixels: {reason}. AttNet, ResNet, ConvNeXt "
            "and PVTv2 take any size, and so does Swin with strict_img_size: false"
        ) from error


def trained_arguments(run: str | Path) -> dict[str, Any]:
    """Model, arguments, channels, mean and std of a finished classification run, by a dense task's names.

    Raises:
        FileNotFoundError, ValueError: no such run, or none of classification.
    """
    opened = Run.open(run)
    try:
        told = json.loads(opened.model_config.read_text())
        shown = told["pretrained_cfg"]
        return {
            "model": told["architecture"],
            "model_args": {k: v for k, v in told.get("model_args", {}).items() if k not in _TRAINING},
            "in_chans": shown["input_size"][0],
            "mean": tuple(shown["mean"]),
            "std": tuple(shown["std"]),
        }
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{run} is not a finished run of atconv train: {error}") from error


def classifier_weights(
    path: str | Path, name: str, arguments: Mapping[str, Any], in_chans: int
) -> dict[str, Tensor]:
    """Weights of a classifier, to start a backbone from.

    Args:
        path: the folder of a finished classification run, or the authors' file for an AttNet.
        name: the model the file is for.
        arguments: its arguments.
        in_chans: its channels.

    Raises:
        FileNotFoundError, ValueError: there are none, or they do not fit the model.
    """
    if Path(path).is_dir():
        return Run.open(path).read_weights()
    model = timm.create_model(name, in_chans=in_chans, **arguments)
    if not isinstance(model, AttNet):
        raise ValueError(f"weights for {name} come from a run's folder; {path} is not one")
    load_release(model, Path(path))
    return model.state_dict()


_TRAINING: Sequence[str] = ("num_classes", "drop_path_rate", "drop_rate", "in_chans")
