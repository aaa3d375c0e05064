"""What the trainer asks of a detector."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from atconv.data.boxes.split import BoxSplit
from atconv.data.formats import open_boxes
from atconv.data.imbalance import Occurrences
from atconv.data.unreadable import CheckImages
from atconv.engine.run import Run
from atconv.io import first_few
from atconv.models.detector_losses import weigh_classes
from atconv.tasks.common.annotated_task import AnnotatedTask
from atconv.tasks.detection.config import DetectionConfig
from atconv.tasks.detection.data import (
    DetectionTransform,
    EvalExamples,
    TrainExamples,
    collate,
)
from atconv.tasks.detection.metrics import mean_average_precision
from atconv.tasks.detection.predictor import DetectionPredictor

__all__ = ["DetectionTask", "make_task"]

logger = logging.getLogger(__name__)


class DetectionTask(AnnotatedTask[DetectionConfig, BoxSplit]):
    """Training of a detector."""

    monitor = "val_map"
    predictor = DetectionPredictor

    def __init__(self, config: DetectionConfig, run: Run, accelerator: Accelerator) -> None:
        super().__init__(config, run, accelerator)
        self.transform = DetectionTransform(config.in_chans)
        self.collate = collate
        self.examples = TrainExamples(self.splits["train"], config)
        self.eval_examples = EvalExamples(self.splits["val"], self.transform, config.masks)
        if self.class_weights is not None:
            weigh_classes(self.model, self.class_weights)

    def open_data(self, check: CheckImages) -> dict[str, BoxSplit]:
        config = self.config
        return open_boxes(
            config.data,
            config.masks,
            check,
            bad_annotations=config.bad_annotations,
            exif=config.exif,
            images=config.images,
            skip_unreadable=True,
        )

    def check_splits(self) -> None:
        for name in ("train", "val"):
            if not self.splits[name].objects:
                raise ValueError(
                    f"the {name} split has no boxes of single objects: training needs some to learn from and "
                    "to be evaluated on. Annotate more, or hold out more with --val-fraction"
                )
        train = self.splits["train"]
        single, crowds = train.count_boxes(crowd=False), train.count_boxes(crowd=True)
        if crowds:
            counts = ", ".join(f"{n} of {name}" for name, n in crowds.items())
            logger.warning("crowds (iscrowd 1, or difficult) are left out of training: %s", counts)
        untaught = [name for name in train.classes if name not in single]
        if untaught:
            logger.warning("no box of a single object teaches %s", first_few(untaught))

    def count_classes(self, split: BoxSplit) -> Occurrences:
        boxes = (Counter(b.label - 1 for b in image.boxes if not b.crowd) for image in split.items)
        return Occurrences.of_counts(split.classes, boxes, "box")

    def model_config(self) -> dict[str, Any]:
        arguments = self.config.model_arguments(len(self.classes))
        return {"task": "detection", "label_names": self.classes, "detector": arguments}

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the detector's losses. It samples sizes and boxes from torch's generator, which the
        trainer has seeded by the step."""
        losses = model(*batch)
        parts = {name.removeprefix("loss_"): value for name, value in losses.items()}
        return torch.stack(list(losses.values())).sum(), parts

    def validate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """map and map_50 of boxes, and mask_map where there are masks."""
        return mean_average_precision(model, batches, self.config.masks)


make_task = DetectionTask
