"""What a segmentation run can be told. A recipe is a YAML file of these fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atconv.engine import recipes
from atconv.engine.run import Run
from atconv.models.segmenters import DIVISOR, SegmenterArchitecture
from atconv.tasks.common.annotated_config import DenseConfig

__all__ = ["DEFAULT_RECIPE", "SegmentationConfig", "read_config", "recipe_names", "recipe_path"]

DEFAULT_RECIPE = "small"


@dataclass(kw_only=True)
class SegmentationConfig(DenseConfig):
    """Options of `atconv segment train`: data, segmenter, and the loop's."""

    architecture: SegmenterArchitecture = "unet"
    """unet, fpn or upernet, of segmentation-models-pytorch"""
    segmenter_args: dict[str, Any] = field(default_factory=dict)
    """further arguments of it, such as {decoder_channels: [128, 64, 32, 16, 16]}"""
    short_side: int = 512
    """the shorter side of every picture is resized to it"""
    scales: tuple[float, float] = (0.5, 2.0)
    """least and greatest factor on that size in training"""
    crop: tuple[int, int] = (512, 512)
    """height and width of the random crop of training, multiples of 32"""
    flip_tta: bool = False
    """test-time augmentation: classify the mean of every picture and its mirror image, at twice the cost;
    epochs are compared without it"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_side < 1:
            raise ValueError(f"short_side must be at least 1, got {self.short_side}")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales must be two factors, 0 < least ≤ greatest, got {self.scales}")
        if min(self.crop) < 1 or any(side % DIVISOR for side in self.crop):
            raise ValueError(f"crop must be height and width, multiples of {DIVISOR}, got {self.crop}")
        if self.batch_size == 1 and (self.architecture == "upernet" or max(self.crop) == DIVISOR):
            raise ValueError(
                "batch_size must be at least 2 here: the coarsest map of one picture is one value, of which "
                "batch norm can learn nothing"
            )


def recipe_names() -> list[str]:
    """Segmentation recipes that ship with the package, selectable by name."""
    return recipes.recipe_names("atconv.tasks.segmentation")


def recipe_path(name: str) -> Path:
    """The file of a segmentation recipe. Raises ValueError where there is none of that name."""
    return recipes.recipe_path("atconv.tasks.segmentation", name)


def read_config(run: Run) -> SegmentationConfig:
    """The configuration of a segmentation run. Raises ValueError where it is not one."""
    return recipes.read_config(run, SegmentationConfig, "segmentation")
