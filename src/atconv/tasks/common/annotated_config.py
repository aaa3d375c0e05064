"""Options of the tasks that train on annotated images: detection and segmentation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

from atconv.data.config import SplitOptions
from atconv.data.imbalance import ClassWeightOptions
from atconv.engine.config import TrainConfig
from atconv.engine.options import BelowOne, Positive, Share
from atconv.engine.recipes import read_config, read_options
from atconv.engine.run import Run
from atconv.models.backbone import check_model_name
from atconv.models.normalization import normalization
from atconv.tasks.common.model_file import read_classifier
from atconv.tasks.common.model_options import ModelOptions
from atconv.tasks.common.start import inherit

__all__ = ["AnnotatedConfig", "inherit_config"]


@dataclass(kw_only=True)
class AnnotatedDataOptions(SplitOptions):
    """Which images there are."""

    group: ClassVar[str] = "data"
    common: ClassVar[tuple[str, ...]] = ()

    data: str = ""
    """folder with images and annotations"""
    images: str | None = None
    """folder of the images where they lie outside DATA; names in annotations may lead anywhere inside it"""
    exif: Literal["upright", "stored"] | None = None
    """what annotations of images with an EXIF orientation belong to: the image turned upright, or the pixels
    as stored; by default sizes decide, and images whose size does not tell are rejected"""


@dataclass(kw_only=True)
class BackboneOptions(ModelOptions):
    """The backbone, and what it starts from."""

    group: ClassVar[str] = "model"
    common: ClassVar[tuple[str, ...]] = ("model", "checkpoint")

    model: str = "attnet_xxs"
    """backbone by timm's name"""
    checkpoint: str | None = None
    """start from a finished run of the same task, or the backbone from a run of `atconv train` or the
    authors' .pth file"""
    drop_path_rate: BelowOne = 0.0
    """stochastic depth of the backbone's last block"""


@dataclass(kw_only=True)
class AnnotatedAugmentationOptions:
    """What training images go through, and how images are normalized."""

    group: ClassVar[str] = "augmentation"
    common: ClassVar[tuple[str, ...]] = ("hflip", "color_jitter")

    hflip: Share = 0.5
    """probability of a horizontal flip"""
    color_jitter: Share = 0.0
    """largest change of brightness, contrast and saturation"""
    mean: tuple[float, ...] | None = None
    """mean of each channel, or one for all; default: ImageNet's, or 0.5 for gray"""
    std: tuple[Positive, ...] | None = None
    """standard deviation of each channel, or one for all; default: ImageNet's, or 0.5 for gray"""


@dataclass(kw_only=True)
class AnnotatedConfig(
    AnnotatedDataOptions,
    BackboneOptions,
    AnnotatedAugmentationOptions,
    ClassWeightOptions,
    TrainConfig,
    ABC,
):
    """Options that both tasks share."""

    task_name: ClassVar[str]
    """its name"""
    extra_args: ClassVar[str]
    """the option that holds more arguments of the model"""
    head_options: ClassVar[tuple[str, ...]]
    """options that weights of the whole model depend on, besides those of the backbone"""
    size_options: ClassVar[tuple[str, ...]]
    """options that say how large images are"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_decay is not None:
            raise ValueError(
                "layer_decay is for classifiers: detectors and segmenters have no order of layers for it. "
                "Leave it out"
            )
        normalization(self.in_chans, self.mean, self.std)

    @property
    def image_sizes(self) -> str:
        """How large images are, for people."""
        return ", ".join(f"{name} {getattr(self, name)}" for name in self.size_options)

    def continues(self, run: Run) -> bool:
        """Whether the whole model can start from a run: one of the same task."""
        return run.config.is_file() and read_options(run).get("task") == self.task_name

    @abstractmethod
    def head_arguments(self) -> dict[str, Any]:
        """Arguments of the model that are this task's own, as JSON holds them."""

    def model_arguments(self, num_classes: int) -> dict[str, Any]:
        """Arguments of the model's builder in `atconv.models`, as JSON holds them.

        Raises:
            ValueError: the extra arguments hold one that another option sets.
        """
        drop_path = {"drop_path_rate": self.drop_path_rate} if self.drop_path_rate else {}
        arguments = {
            "backbone": self.model,
            "num_classes": num_classes,
            "in_chans": self.in_chans,
            "backbone_args": {**self.model_args, **drop_path},
            **self.head_arguments(),
        }
        extra = getattr(self, self.extra_args)
        fixes = {"backbone": "give --model", "num_classes": "the data say how many"}
        for name in sorted({*arguments, "state_dict"} & set(extra)):
            fix = fixes.get(name, f"give --{name.replace('_', '-')}")
            raise ValueError(f"{self.extra_args} holds {name}: {fix} instead")
        return arguments | extra


C = TypeVar("C", bound=AnnotatedConfig)


def inherit_config(config: C, chosen: Collection[str] = ()) -> C:
    """Where weights come from a run, its model, channels and normalization come with them, and from one of
    the same task all that shapes the model.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: an option was chosen that contradicts it, or it is a run of another task.
    """
    check_model_name(config.model)
    run = config.source_run()
    if run is None:
        return config
    if config.continues(run):
        names = ("model", "model_args", "in_chans", "mean", "std", *config.head_options)
        return inherit(config, read_config(run, type(config), config.task_name), names, chosen)
    inherited = _classifier_options(run)
    return inherit(config, replace(config, **inherited), inherited, chosen)


def _classifier_options(run: Run) -> dict[str, Any]:
    """The options that a finished classification run brings, from the config.json that timm reads."""
    try:
        content = read_classifier(run.model_config)
        pretrained, model_args = content["pretrained_cfg"], content.get("model_args", {})
        return {
            "model": content["architecture"],
            "model_args": {k: v for k, v in model_args.items() if k not in _TRAINING_ARGS},
            "in_chans": pretrained["input_size"][0],
            "mean": tuple(pretrained["mean"]),
            "std": tuple(pretrained["std"]),
        }
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{run.path} is a finished run neither of this task nor of atconv train: {error}"
        ) from error


_TRAINING_ARGS = ("num_classes", "drop_path_rate", "drop_rate", "in_chans")
