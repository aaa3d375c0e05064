"""Semantic segmentation: a class for every pixel. `atconv segment`."""

from __future__ import annotations

from atconv.tasks.common.annotated_config import inherit_config
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.spec import TaskSpec

__all__ = ["SPEC", "SegmentationConfig"]


SPEC = TaskSpec(
    name="segmentation",
    command="segment",
    config=SegmentationConfig,
    data="a folder with images/, masks/ and classes.txt",
    inherit_config=inherit_config,
    evaluation_writes=("confusion.png", "predictions.png"),
)
