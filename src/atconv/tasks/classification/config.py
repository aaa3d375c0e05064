"""The options of a classification run. A recipe is a YAML file of these fields."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from atconv.data.config import DataConfig
from atconv.data.imbalance import ClassWeightOptions
from atconv.engine.config import TrainConfig
from atconv.engine.options import (
    BelowOne,
    CropShare,
    Degrees,
    Factor,
    NonNegative,
    NonNegativeInt,
    Pixels,
    Positive,
    PositiveInt,
    Share,
    Temperature,
)
from atconv.engine.recipes import read_config
from atconv.models.backbone import check_model_name
from atconv.models.normalization import normalization
from atconv.tasks.common.model_options import ModelOptions
from atconv.tasks.common.start import inherit

__all__ = ["MULTI_LABEL", "ClassificationConfig", "inherit_config"]

MULTI_LABEL = "multi_label_classification"
"""`problem_type` in config.json, as transformers calls it, of runs of several labels an image"""


@dataclass(kw_only=True)
class ClassifierOptions:
    """More about the network."""

    group: ClassVar[str] = "model"
    common: ClassVar[tuple[str, ...]] = ("image_size",)

    use_ema: bool = False
    """take the EMA weights of the authors' file"""
    image_size: Pixels = 224
    """height and width of the input"""
    drop_path_rate: BelowOne = 0.0
    """stochastic depth of the last block"""
    drop_rate: BelowOne = 0.0
    """dropout before the classifier"""
    freeze_backbone: bool = False
    """train the head alone"""
    head_epochs: NonNegativeInt = 0
    """train the head alone in so many first epochs, then all"""
    unfreeze_epochs: PositiveInt | None = None
    """after head_epochs add a stage every so many epochs, from the last to the first; default: all at once"""
    grad_checkpointing: bool = False
    """less memory for more time"""


@dataclass(kw_only=True)
class AugmentationOptions:
    """What training images go through, and how images are resized and normalized."""

    group: ClassVar[str] = "augmentation"
    common: ClassVar[tuple[str, ...]] = ("hflip", "auto_augment")

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """min and max area of the random crop"""
    crop_ratio: tuple[Factor, Factor] = (0.75, 1.3333)
    """min and max aspect ratio of the random crop"""
    rotate: Degrees = 0.0
    """random rotation up to this many degrees"""
    shift: Share = 0.0
    """random shift up to this share of the image size, with black moving in"""
    hflip: Share = 0.5
    """probability of a horizontal flip; 0 for digits and text"""
    vflip: Share = 0.0
    """probability of a vertical flip"""
    color_jitter: Share = 0.0
    """strength of color jitter; timm drops it when auto_augment is set"""
    auto_augment: str | None = None
    """automatic augmentation by timm's name"""
    erase_prob: Share = 0.0
    """probability of random erasing"""
    repeats: PositiveInt = 1
    """copies of an image in a batch, each augmented again; an epoch stays as long"""
    interpolation: Literal["nearest", "bilinear", "bicubic", "random"] = "bicubic"
    """resampling; random applies to training only"""
    crop_pct: CropShare = 0.875
    """share of the resized image that the center crop of evaluation takes"""
    mean: tuple[float, ...] | None = None
    """mean of each channel, or one for all; default: ImageNet's, or 0.5 for gray"""
    std: tuple[Positive, ...] | None = None
    """standard deviation of each channel, or one for all; default: ImageNet's, or 0.5 for gray"""
    reduced_decode: bool = False
    """in training, decode JPEGs at 1/2, 1/4 or 1/8 of their size where the crop needs no more"""


@dataclass(kw_only=True)
class LossOptions(ClassWeightOptions):
    """What training minimizes."""

    group: ClassVar[str] = "loss"
    common: ClassVar[tuple[str, ...]] = ("mixup", "label_smoothing")

    mixup: NonNegative = 0.0
    """Mixup alpha"""
    cutmix: NonNegative = 0.0
    """CutMix alpha"""
    mix_prob: Share = 1.0
    """probability of mixing a batch"""
    mix_switch_prob: Share = 0.5
    """probability of CutMix where both are on"""
    label_smoothing: Share = 0.1
    """label smoothing"""


@dataclass(kw_only=True)
class DistillationOptions:
    """Learning from a teacher."""

    group: ClassVar[str] = "distillation"
    common: ClassVar[tuple[str, ...]] = ("teacher",)

    distill: Literal["none", "soft", "hard", "dkd"] = "none"
    """learn from a teacher"""
    teacher: str | None = None
    """teacher by timm's name, or a run's folder"""
    teacher_weights: str | None = None
    """weights file of a named teacher; default: timm's pretrained weights"""
    distill_weight: Share = 0.5
    """a in (1 − a)·loss + a·distillation, for soft and hard"""
    distill_temperature: Temperature | None = None
    """temperature; default 1, and 4 for dkd"""
    dkd_alpha: NonNegative = 1.0
    """weight of the target-class part of DKD"""
    dkd_beta: NonNegative = 4.0
    """weight of the non-target part of DKD"""


@dataclass(kw_only=True)
class ClassificationConfig(
    DataConfig,
    ModelOptions,
    ClassifierOptions,
    AugmentationOptions,
    LossOptions,
    DistillationOptions,
    TrainConfig,
):
    """Options of `atconv train`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must be two areas, 0 < min ≤ max ≤ 1, got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must be two ratios, 0 < min ≤ max, got {self.crop_ratio}")
        if self.reduced_decode and (self.rotate or self.shift):
            raise ValueError(
                "reduced_decode and rotate or shift do not go together: whole images are turned and shifted "
                "before they are cropped; leave one out"
            )
        if (self.distill != "none") != (self.teacher is not None):
            raise ValueError(
                "distillation needs both: distill (soft, hard or dkd) and teacher (a timm name or a run)"
            )
        if self.teacher_weights is not None and self.teacher is None:
            raise ValueError("teacher_weights are of a teacher: give it too, or leave them out")
        if self.sampler != "shuffle" and self.repeats > 1:
            raise ValueError("sampler and repeats do not go together: both say how often an image is shown")
        if self.class_weights != "none" and self.mixes:
            raise ValueError(
                "class_weights and mixup/cutmix do not go together: a mixed image has no one class"
            )
        self.normalization()  # fail fast
        if self.freeze_backbone and self.head_epochs:
            raise ValueError(
                "freeze_backbone and head_epochs do not go together: the head trains alone in all epochs, or "
                f"in the first {self.head_epochs}; leave one out"
            )
        if self.head_epochs >= self.epochs:
            raise ValueError(
                f"head_epochs must be less than epochs ({self.epochs}), got {self.head_epochs}; to train the "
                "head alone, set freeze_backbone"
            )
        if self.unfreeze_epochs is not None and not self.head_epochs:
            raise ValueError("unfreeze_epochs adds stages after head_epochs: set head_epochs too")
        if self.head_epochs and self.shard:
            raise ValueError("head_epochs and shard do not go together: shards are made once, of all weights")

    @classmethod
    def give_way(cls, options: dict[str, Any], changes: Collection[str], recipe: Mapping[str, Any]) -> None:
        super().give_way(options, changes, recipe)
        if "head_epochs" not in changes:
            frozen = "freeze_backbone" in changes and options["freeze_backbone"]
            options["head_epochs"] = min(options["head_epochs"], 0 if frozen else options["epochs"] - 1)

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the input."""
        return normalization(self.in_chans, self.mean, self.std)

    @property
    def find_unused_parameters(self) -> bool:
        return self.head_epochs > 0

    @property
    def eval_batch_size(self) -> int:
        """Images in a forward pass of evaluation: without gradients there is room for 32."""
        return max(self.batch_size, 32)

    @property
    def evens_out(self) -> bool:
        """Whether classes count alike however many images they have."""
        return self.class_weights != "none" or self.sampler != "shuffle"

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return self.mixup > 0 or self.cutmix > 0


def inherit_config(config: ClassificationConfig, chosen: Collection[str] = ()) -> ClassificationConfig:
    """Where weights come from another run, its model, channels and normalization come with them, and its
    input size, crop and interpolation, unless they are among the `chosen` options.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: an option was chosen that contradicts the run's model.
    """
    check_model_name(config.model)
    run = config.source_run()
    if run is None:
        return config
    source = read_config(run, ClassificationConfig, "classification")
    fixed = ("model", "model_args", "in_chans", "mean", "std")
    free = [name for name in ("image_size", "crop_pct", "interpolation") if name not in chosen]
    return inherit(config, source, (*fixed, *free), chosen)
