"""What runs of both dense tasks can be told."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import timm
from torch import Tensor

from atconv.data.images import mode_for
from atconv.engine.config import LoopConfig, check_shares
from atconv.engine.recipes import refuse_contradictions
from atconv.engine.run import Run
from atconv.models.attnet import AttNet
from atconv.models.normalization import normalization
from atconv.models.release import load_release

__all__ = ["DenseConfig", "inherit_config", "refuse_own_options"]


@dataclass(kw_only=True)
class DenseConfig(LoopConfig):
    """Options of both `train` commands: data, backbone, and the loop's."""

    data: str = ""
    """folder with pictures and annotations"""
    val_fraction: float = 0.1
    """share of the training pictures held out for validation where DATA has no validation side"""
    check_images: Literal["decode", "header", "none"] = "decode"
    """how image files are checked before training: decode each, read its header, or not at all"""
    model: str = "attnet_xxs"
    """backbone by timm's name"""
    model_args: dict[str, Any] = field(default_factory=dict)
    """further arguments of the backbone, such as {depths: [1, 1, 3, 1]}"""
    weights: str | None = None
    """start the backbone from a finished run of `atconv train`, or from the authors' .pth file"""
    in_chans: int = 3
    """3 reads pictures in color, 1 in gray"""
    mean: tuple[float, ...] | None = None
    """mean of each channel; default: ImageNet's, or 0.5 for gray"""
    std: tuple[float, ...] | None = None
    """standard deviation of each channel; default: ImageNet's, or 0.5 for gray"""
    drop_path_rate: float = 0.0
    """stochastic depth of the backbone's last block"""
    hflip: float = 0.5
    """probability of a horizontal flip"""
    color_jitter: float = 0.0
    """greatest change of brightness, contrast and saturation"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "hflip", "drop_path_rate", "color_jitter")
        if self.layer_decay is not None:
            raise ValueError(
                "layer_decay is for classifiers: detectors and segmenters have no order of layers for it. "
                "Leave it out"
            )
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {self.val_fraction}")
        mode_for(self.in_chans)
        normalization(self.in_chans, self.mean, self.std)

    @property
    def backbone_args(self) -> dict[str, Any]:
        """Arguments of the backbone."""
        return {**self.model_args, **({"drop_path_rate": self.drop_path_rate} if self.drop_path_rate else {})}


D = TypeVar("D", bound=DenseConfig)


def inherit_config(config: D, chosen: Collection[str] = ()) -> D:
    """Where weights come from a run, its model, channels and normalization come with them.

    Raises:
        FileNotFoundError: the weights are not there.
        ValueError: an option was chosen that contradicts them, or the run is none of classification.
    """
    if config.weights is not None and not Path(config.weights).exists():
        raise FileNotFoundError(f"no such file or run: {config.weights}")
    if config.weights is None or not Path(config.weights).is_dir():
        return config
    taken = trained_arguments(config.weights)
    source = replace(config, **taken)
    refuse_contradictions(config, source, taken, chosen)
    return source


def refuse_own_options(name: str, further: Mapping[str, Any], own: Collection[str]) -> None:
    """Raise ValueError where `further` arguments of a model hold one that has an option of its own.

    Args:
        name: of the option that holds the further arguments.
        further: given in it.
        own: arguments that other options set.
    """
    mended = {"backbone": "give --model", "num_classes": "the data say how many"}
    for argument in sorted(set(own) & set(further)):
        raise ValueError(f"{name} holds {argument}: {mended.get(argument, f'give --{argument}')} instead")


def trained_arguments(run: str | Path) -> dict[str, Any]:
    """Model, arguments, channels, mean and std of a finished classification run, as options of a dense task.

    Raises:
        FileNotFoundError, ValueError: no such run, or none of classification.
    """
    opened = Run.open(run)
    try:
        content = json.loads(opened.model_config.read_text())
        pretrained = content["pretrained_cfg"]
        return {
            "model": content["architecture"],
            "model_args": {k: v for k, v in content.get("model_args", {}).items() if k not in _TRAINING},
            "in_chans": pretrained["input_size"][0],
            "mean": tuple(pretrained["mean"]),
            "std": tuple(pretrained["std"]),
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


_TRAINING = ("num_classes", "drop_path_rate", "drop_rate", "in_chans")
