"""The options of a segmentation run. A recipe is a YAML file of these fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from atconv.data.config import MaskOptions
from atconv.engine.options import Factor, Pixels
from atconv.models.segmenters import DIVISOR, SegmenterArchitecture
from atconv.tasks.common.annotated_config import AnnotatedConfig

__all__ = ["SegmentationConfig"]


@dataclass(kw_only=True)
class SegmenterOptions:
    """The segmenter on the backbone, and the sizes of its images."""

    group: ClassVar[str] = "segmenter"
    common: ClassVar[tuple[str, ...]] = ("architecture", "short_side", "crop")

    architecture: SegmenterArchitecture = "unet"
    """unet, fpn or upernet, of segmentation-models-pytorch"""
    segmenter_args: dict[str, Any] = field(default_factory=dict)
    """more arguments of it, such as {decoder_channels: [128, 64, 32, 16, 16]}"""
    short_side: Pixels = 512
    """the shorter side of every image is resized to it"""
    scales: tuple[Factor, Factor] = (0.5, 2.0)
    """min and max factor on that size in training"""
    crop: tuple[Pixels, Pixels] = (512, 512)
    """height and width of the random crop of training, multiples of 32"""
    flip_tta: bool = False
    """test-time augmentation: average the predictions for every image and its mirror image, at twice the
    cost; epochs are compared without it"""


@dataclass(kw_only=True)
class SegmentationConfig(SegmenterOptions, MaskOptions, AnnotatedConfig):
    """Options of `atconv segment train`."""

    task_name = "segmentation"
    extra_args = "segmenter_args"
    head_options = ("architecture", "segmenter_args")
    size_options = ("short_side", "crop")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales[0] > self.scales[1]:
            raise ValueError(f"scales must be two factors, 0 < min ≤ max, got {self.scales}")
        if any(size % DIVISOR for size in self.crop):
            raise ValueError(f"crop must be height and width, multiples of {DIVISOR}, got {self.crop}")
        self.check_masks()
        if self.batch_size < self.min_batch:
            raise ValueError(
                "batch_size must be at least 2 here: the coarsest map of one image is one value, of which "
                "batch norm can learn nothing"
            )

    @property
    def min_batch(self) -> int:
        """Images that a micro-batch needs."""
        return 2 if self.architecture == "upernet" or max(self.crop) == DIVISOR else 1

    def head_arguments(self) -> dict[str, Any]:
        return {"architecture": self.architecture}
