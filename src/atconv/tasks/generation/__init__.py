"""Image generation with SiT: `atconv generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atconv.engine.run import Run
from atconv.tasks.generation.config import GenerationConfig, inherit_config
from atconv.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atconv.tasks.generation.predictor import GenerationPredictor
    from atconv.tasks.generation.task import GenerationTask

__all__ = ["SPEC", "GenerationConfig"]


def _make_task(config: GenerationConfig, run: Run, accelerator: Accelerator) -> GenerationTask:
    from atconv.tasks.generation.task import make_task

    return make_task(config, run, accelerator)


def _open(run: Run) -> GenerationPredictor:
    from atconv.tasks.generation.predictor import open_run

    return open_run(run)


SPEC = TaskSpec(
    name="generation",
    command="generate",
    config=GenerationConfig,
    data="an image folder, an LMDB file, a timm dataset name (torch/..., hfds/...), digits, or a folder of "
    "latents from atconv generate encode",
    make_task=_make_task,
    open=_open,
    inherit_config=inherit_config,
)
