"""Image classification: `atconv train`."""

from __future__ import annotations

from atconv.tasks.classification.config import ClassificationConfig, inherit_config
from atconv.tasks.spec import TaskSpec

__all__ = ["SPEC", "ClassificationConfig"]


SPEC = TaskSpec(
    name="classification",
    command="",
    config=ClassificationConfig,
    data="an image folder, an LMDB file, a timm dataset name (torch/..., hfds/..., wds/...) or digits",
    inherit_config=inherit_config,
    evaluation_writes=("predictions.csv", "confusion.png", "mistakes.png"),
    tools=("train", "evaluate", "predict", "study", "analyze", "export"),
)
