"""Any timm model as the backbone of a dense task: its feature maps, its strides, its weights."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from atconv.engine.run import Run
from atconv.models.attnet import AttNet
from atconv.models.release import load_release

__all__ = [
    "Pyramid",
    "check_counts",
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
    try:
        body = timm.create_model(name, **options, out_indices=tuple(range(count - levels, count)))
    except (TypeError, AttributeError, AssertionError) as error:
        raise _no_maps(name, arguments, error) from error
    except RuntimeError as error:
        if weights is None:
            raise
        raise ValueError(f"the weights do not fit {name}: {str(error).splitlines()[-1].strip()}") from error
    if weights is not None:
        _check_taken(body, name, weights)
    return body


def _check_taken(body: nn.Module, name: str, weights: Mapping[str, Tensor]) -> None:
    """timm starts afresh what it does not find among the weights, and renames some before it looks: so it is
    the values that are compared, of matrices and kernels."""
    given = {_print_of(value) for value in weights.values() if isinstance(value, Tensor)}
    own = {key: value for key, value in body.named_parameters() if value.ndim > 1}
    fresh = [key for key, value in own.items() if _print_of(value) not in given]
    told = f"{len(fresh)} of {len(own)} matrices of {name} are not among the weights"
    if 2 * len(fresh) > len(own):
        raise ValueError(
            f"the weights do not fit {name}: {told}, such as {fresh[0]}; they hold "
            f"{', '.join(list(weights)[:3])}, … Give state_dict() of the classifier, as it is"
        )
    if fresh:
        warnings.warn(f"{told} and start fresh: {', '.join(fresh[:5])}", stacklevel=2)


def _print_of(tensor: Tensor) -> bytes:
    """Of the values, whatever their shape and precision."""
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().tobytes()).digest()


def _no_maps(name: str, arguments: Mapping[str, Any], error: Exception) -> ValueError:
    told = f"{name} with {dict(arguments)} gives no feature maps: {error}"
    if "drop_path_rate" in str(error):
        told += ". It has no stochastic depth: leave drop_path_rate out (--drop_path_rate 0)"
    return ValueError(told)


def check_counts(**counts: Any) -> None:
    """Raise ValueError unless all are whole numbers from 1 on."""
    if any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in counts.values()):
        told = ", ".join(repr(count) for count in counts.values())
        raise ValueError(f"{', '.join(counts)} must be whole numbers, at least 1, got {told}")


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
