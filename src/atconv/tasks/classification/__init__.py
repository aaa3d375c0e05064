"""Image classification: `atconv train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atconv.engine.run import Run
from atconv.tasks.classification.config import ClassificationConfig, inherit_config
from atconv.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atconv.tasks.classification.predictor import ClassificationPredictor
    from atconv.tasks.classification.task import ClassificationTask

__all__ = ["SPEC", "ClassificationConfig"]


def _make_task(config: ClassificationConfig, run: Run, accelerator: Accelerator) -> ClassificationTask:
    from atconv.tasks.classification.task import make_task

    return make_task(config, run, accelerator)


def _open(run: Run) -> ClassificationPredictor:
    from atconv.tasks.classification.predictor import open_run

    return open_run(run)


SPEC = TaskSpec(
    name="classification",
    command="",
    config=ClassificationConfig,
    data="an image folder, an LMDB file, a timm dataset name (torch/..., hfds/..., wds/...) or digits",
    make_task=_make_task,
    open=_open,
    inherit_config=inherit_config,
)
