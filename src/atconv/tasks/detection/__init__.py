"""Detection and instance segmentation: boxes, names and masks of objects. `atconv detect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atconv.engine.run import Run
from atconv.tasks.common.annotated_config import inherit_config
from atconv.tasks.detection.config import DetectionConfig
from atconv.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atconv.tasks.detection.predictor import DetectionPredictor
    from atconv.tasks.detection.task import DetectionTask

__all__ = ["SPEC", "DetectionConfig"]


def _make_task(config: DetectionConfig, run: Run, accelerator: Accelerator) -> DetectionTask:
    from atconv.tasks.detection.task import DetectionTask

    return DetectionTask(config, run, accelerator)


def _open(run: Run) -> DetectionPredictor:
    from atconv.tasks.detection.predictor import DetectionPredictor

    return DetectionPredictor.open(run)


SPEC = TaskSpec(
    name="detection",
    command="detect",
    config=DetectionConfig,
    data="a folder with images/ and train.json, val.json (COCO's format), or annotations.json",
    make_task=_make_task,
    open=_open,
    inherit_config=inherit_config,
)
