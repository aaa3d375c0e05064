"""Semantic segmentation: a class for every pixel. `atconv segment`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atconv.engine.run import Run
from atconv.tasks.common.annotated_config import inherit_config
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atconv.tasks.segmentation.predictor import SegmentationPredictor
    from atconv.tasks.segmentation.task import SegmentationTask

__all__ = ["SPEC", "SegmentationConfig"]


def _make_task(config: SegmentationConfig, run: Run, accelerator: Accelerator) -> SegmentationTask:
    from atconv.tasks.segmentation.task import SegmentationTask

    return SegmentationTask(config, run, accelerator)


def _open(run: Run) -> SegmentationPredictor:
    from atconv.tasks.segmentation.predictor import SegmentationPredictor

    return SegmentationPredictor.open(run)


SPEC = TaskSpec(
    name="segmentation",
    command="segment",
    config=SegmentationConfig,
    data="a folder with images/, masks/ and classes.txt",
    make_task=_make_task,
    open=_open,
    inherit_config=inherit_config,
)
