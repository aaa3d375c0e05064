"""The options of a detection run. A recipe is a YAML file of these fields."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from atconv.engine.options import Factor, Pixels, PositiveInt
from atconv.models.detectors import DetectorArchitecture, check_sizes
from atconv.models.normalization import normalization
from atconv.tasks.common.annotated_config import AnnotatedConfig

__all__ = ["DetectionConfig"]

_COUNTS = ("per_img", "per_image", "_train", "_test", "candidates")  # how torchvision's numbers of boxes end


@dataclass(kw_only=True)
class DetectorOptions:
    """The detector on the backbone."""

    group: ClassVar[str] = "detector"
    common: ClassVar[tuple[str, ...]] = ("architecture", "min_size", "bad_annotations")

    architecture: DetectorArchitecture = "faster_rcnn"
    """faster_rcnn, retinanet, or mask_rcnn, which also gives masks"""
    levels: PositiveInt | None = None
    """feature maps of the backbone, from the coarsest; default: 4, and 3 for RetinaNet"""
    channels: PositiveInt = 256
    """channels of the pyramid and the heads"""
    anchor_scale: Factor | None = None
    """size of an anchor by the stride of its map; default: 8, and 4 for RetinaNet"""
    min_size: tuple[Pixels, ...] = (800,)
    """the shorter side is resized to it; of several, each training image takes one, evaluation the last"""
    max_size: Pixels = 1333
    """but the longer side is never longer than this"""
    bad_annotations: Literal["reject", "skip"] = "reject"
    """reject annotations that are wrong, or skip them: they are named and left out"""
    detector_args: dict[str, Any] = field(default_factory=dict)
    """more arguments of torchvision's detector, such as {box_batch_size_per_image: 128}"""


@dataclass(kw_only=True)
class DetectionConfig(DetectorOptions, AnnotatedConfig):
    """Options of `atconv detect train`."""

    task_name = "detection"
    extra_args = "detector_args"
    head_options = ("architecture", "levels", "channels", "anchor_scale", "detector_args")
    size_options = ("min_size", "max_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self.min_size, self.max_size)
        for name, value in self.detector_args.items():
            minimum = 1 if name.endswith(_COUNTS) else 0
            if isinstance(value, (int, float)) and value < minimum:
                raise ValueError(f"detector_args: {name} must be at least {minimum}, got {value}")

    @classmethod
    def give_way(cls, options: dict[str, Any], changes: Collection[str], recipe: Mapping[str, Any]) -> None:
        super().give_way(options, changes, recipe)
        if "max_size" in changes and "min_size" not in changes:
            options["min_size"] = [min(size, options["max_size"]) for size in options["min_size"]]
        elif "min_size" in changes and "max_size" not in changes:  # 5 : 3 as 1333 and 800
            options["max_size"] = max(options["max_size"], 5 * max(options["min_size"], default=0) // 3)

    @property
    def masks(self) -> bool:
        """Whether it learns masks too."""
        return self.architecture == "mask_rcnn"

    def head_arguments(self) -> dict[str, Any]:
        mean, std = normalization(self.in_chans, self.mean, self.std)
        return {
            "architecture": self.architecture,
            "levels": self.levels,
            "channels": self.channels,
            "anchor_scale": self.anchor_scale,
            "min_size": list(self.min_size),
            "max_size": self.max_size,
            "mean": list(mean),
            "std": list(std),
        }
