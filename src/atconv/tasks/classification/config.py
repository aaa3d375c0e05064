"""What a classification run can be told. A recipe is a YAML file of these fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from atconv.data.config import DataConfig
from atconv.engine import recipes
from atconv.engine.config import LoopConfig, check_shares
from atconv.engine.run import Run
from atconv.models.normalization import normalization

__all__ = ["ClassificationConfig", "read_config", "recipe_names", "recipe_path"]

DEFAULT_RECIPE = "small"


@dataclass(kw_only=True)
class ClassificationConfig(DataConfig, LoopConfig):
    """Options of `atconv train`: data, model, augmentation, loss, distillation, and the loop's."""

    model: str = "attnet_xxs"
    """model by timm's name"""
    model_args: dict[str, Any] = field(default_factory=dict)
    """further arguments of the model, such as {stem_stride: 2}"""
    weights: str | None = None
    """start from the authors' .pth file, from a .safetensors file or from another run's folder"""
    weights_ema: bool = False
    """take the EMA weights of the authors' file"""
    image_size: int = 224
    """side of the square input"""
    in_chans: int = 3
    """3 reads pictures in color, 1 in gray"""
    drop_path_rate: float = 0.0
    """stochastic depth of the last block"""
    drop_rate: float = 0.0
    """dropout before the classifier"""
    freeze_backbone: bool = False
    """train the head alone"""
    grad_checkpointing: bool = False
    """less memory for more time"""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """least and greatest area of the random crop"""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """least and greatest aspect ratio of the random crop"""
    rotate: float = 0.0
    """random rotation up to this many degrees"""
    shift: float = 0.0
    """random shift up to this share of the side, with black moving in"""
    hflip: float = 0.5
    """probability of a horizontal flip; 0 for digits and text"""
    vflip: float = 0.0
    """probability of a vertical flip"""
    color_jitter: float = 0.0
    """strength of color jitter; timm drops it when auto_augment is set"""
    auto_augment: str | None = None
    """automatic augmentation by timm's name, such as rand-m9-mstd0.5-inc1"""
    erase_prob: float = 0.0
    """probability of random erasing"""
    repeats: int = 1
    """copies of an image in a batch, each augmented anew; an epoch stays as long"""
    interpolation: Literal["nearest", "bilinear", "bicubic", "random"] = "bicubic"
    """resampling; random applies to training only"""
    crop_pct: float = 0.875
    """share of the resized image that the center crop of evaluation takes"""
    mean: tuple[float, ...] | None = None
    """mean of each channel; default: ImageNet's, or 0.5 for gray"""
    std: tuple[float, ...] | None = None
    """standard deviation of each channel; default: ImageNet's, or 0.5 for gray"""

    mixup: float = 0.0
    """Mixup alpha"""
    cutmix: float = 0.0
    """CutMix alpha"""
    mix_prob: float = 1.0
    """probability of mixing a batch"""
    mix_switch_prob: float = 0.5
    """probability of CutMix where both are on"""
    label_smoothing: float = 0.1
    """label smoothing"""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs each class by the inverse of its frequency"""

    distill: Literal["none", "soft", "hard", "dkd"] = "none"
    """learn from a teacher"""
    teacher: str | None = None
    """teacher by timm's name, or a run's folder"""
    teacher_weights: str | None = None
    """weights file of a named teacher; default: timm's pretrained weights"""
    distill_weight: float = 0.5
    """a in (1 − a)·loss + a·distillation, for soft and hard"""
    distill_temperature: float | None = None
    """temperature; default 1, and 4 for dkd"""
    dkd_alpha: float = 1.0
    """weight of the target-class part of DKD"""
    dkd_beta: float = 4.0
    """weight of the non-target part of DKD"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "drop_path_rate", "drop_rate", "hflip", "vflip", "erase_prob", "shift")
        check_shares(self, "crop_pct", "mix_prob", "mix_switch_prob", "label_smoothing", "distill_weight")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must be two areas, 0 < least ≤ greatest ≤ 1, got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must be two ratios, 0 < least ≤ greatest, got {self.crop_ratio}")
        if min(self.mixup, self.cutmix, self.rotate) < 0:
            raise ValueError("mixup, cutmix and rotate must not be negative")
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")
        if (self.distill != "none") != (self.teacher is not None):
            raise ValueError(
                "distillation needs both: distill (soft, hard or dkd) and teacher (a timm name or a run)"
            )
        if self.class_weights != "none" and self.mixes:
            raise ValueError(
                "class_weights and mixup/cutmix do not go together: a mixed image has no one class"
            )
        self.normalization()  # complains early

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the input."""
        return normalization(self.in_chans, self.mean, self.std)

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


def recipe_names() -> list[str]:
    """Classification recipes that ship with the package, selectable by name."""
    return recipes.recipe_names("atconv.tasks.classification")


def recipe_path(name: str) -> Path:
    """The file of a classification recipe. Raises ValueError where there is none of that name."""
    return recipes.recipe_path("atconv.tasks.classification", name)


def read_config(run: Run) -> ClassificationConfig:
    """The configuration of a classification run. Raises ValueError where it is not one."""
    return recipes.read_config(run, ClassificationConfig, "classification")
