"""What a detection run can be told. A recipe is a YAML file of these fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atconv.data.coco import BadAnnotations
from atconv.engine import recipes
from atconv.engine.run import Run
from atconv.models.detectors import DetectorArchitecture, check_sizes
from atconv.tasks.common.annotated_config import DenseConfig

__all__ = ["DEFAULT_RECIPE", "DetectionConfig", "read_config", "recipe_names", "recipe_path"]

DEFAULT_RECIPE = "small"


@dataclass(kw_only=True)
class DetectionConfig(DenseConfig):
    """Options of `atconv detect train`: data, detector, and the loop's."""

    architecture: DetectorArchitecture = "faster_rcnn"
    """faster_rcnn, retinanet, or mask_rcnn, which also gives masks"""
    levels: int | None = None
    """feature maps of the backbone, from the coarsest; default: 4, and 3 for RetinaNet"""
    channels: int = 256
    """channels of the pyramid and the heads"""
    anchor_scale: float | None = None
    """side of an anchor by the stride of its map; default: 8, and 4 for RetinaNet"""
    min_size: tuple[int, ...] = (800,)
    """the shorter side is resized to it; of several, each training picture takes one, evaluation the last"""
    max_size: int = 1333
    """but the longer side is never longer than this"""
    bad_annotations: BadAnnotations = "reject"
    """refuse annotations that are wrong, or skip them: they are named and left out"""
    detector_args: dict[str, Any] = field(default_factory=dict)
    """further arguments of torchvision's detector, such as {box_batch_size_per_image: 128}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self.min_size, self.max_size)

    @property
    def masks(self) -> bool:
        """Whether it learns masks too."""
        return self.architecture == "mask_rcnn"


def recipe_names() -> list[str]:
    """Detection recipes that ship with the package, selectable by name."""
    return recipes.recipe_names("atconv.tasks.detection")


def recipe_path(name: str) -> Path:
    """The file of a detection recipe. Raises ValueError where there is none of that name."""
    return recipes.recipe_path("atconv.tasks.detection", name)


def read_config(run: Run) -> DetectionConfig:
    """The configuration of a detection run. Raises ValueError where it is not one."""
    return recipes.read_config(run, DetectionConfig, "detection")
