"""What the trainer asks of a detector."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from atconv.data.coco import CocoSplit, open_coco
from atconv.engine.rng import derive_seed, seeded
from atconv.engine.run import Run
from atconv.tasks.common.annotated_task import AnnotatedTask, open_splits, starting_weights
from atconv.tasks.detection.config import DetectionConfig
from atconv.tasks.detection.data import DetectionTransform, Target, augmentation, eval_batches, load_example
from atconv.tasks.detection.metrics import mean_average_precision
from atconv.tasks.detection.predictor import DetectionPredictor, build_detector

__all__ = ["DetectionTask", "make_task"]

logger = logging.getLogger(__name__)


class DetectionTask(AnnotatedTask[CocoSplit]):
    """Training of a detector."""

    monitor = "val_map"
    predictor = DetectionPredictor

    def __init__(
        self,
        config: DetectionConfig,
        run: Run,
        accelerator: Accelerator,
        model: nn.Module,
        splits: dict[str, CocoSplit],
        model_config: dict[str, Any],
    ) -> None:
        super().__init__(config, run, accelerator, model, splits, model_config)
        self.transform, self.masks = DetectionTransform(config.in_chans), config.masks
        self.augmentation = augmentation(config.hflip, config.color_jitter)

    def load(self, position: int) -> tuple[Tensor, Target]:
        return self.augmentation(
            *load_example(self.splits["train"], position, self.transform.mode, self.masks)
        )

    @staticmethod
    def collate(examples: Sequence[tuple[Any, Any]]) -> tuple[list[Tensor], list[Target]]:
        return [image for image, _ in examples], [target for _, target in examples]

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the detector's losses. It samples sizes and boxes from torch's generator, which the
        trainer has seeded by the step."""
        losses = model(*batch)
        parts = {name.removeprefix("loss_"): value for name, value in losses.items()}
        return torch.stack(list(losses.values())).sum(), parts

    def validate(self, model: nn.Module, split: CocoSplit, positions: Sequence[int]) -> dict[str, float]:
        """map and map_50 of boxes, and mask_map where there are masks."""
        batches = eval_batches(split, positions, self.transform, self.masks, self.batch_size)
        return mean_average_precision(model, batches, self.masks)


def make_task(config: DetectionConfig, run: Run, accelerator: Accelerator) -> DetectionTask:
    """Data and model of a configuration, put together.

    Raises:
        ValueError: data, model or weights do not fit.
    """
    with torch.device("meta"):  # fail fast: what is wrong with the model, before the data is read
        build_detector(config.model_arguments(1))
    read = partial(open_coco, config.data, config.masks, bad_annotations=config.bad_annotations)
    splits = open_splits(config, run, accelerator, read)
    for name in ("train", "val"):
        if not splits[name].objects:
            raise ValueError(
                f"the {name} split has no boxes of single objects: training needs some to learn from and to "
                "be evaluated on. Annotate more, or hold out more with --val-fraction"
            )
    classes, boxes = splits["train"].classes, splits["train"].objects
    counts = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    logger.info("%d classes, %d boxes to train on, images: %s", len(classes), boxes, counts)
    arguments = config.model_arguments(len(classes))
    weights = starting_weights(config, run)
    with seeded(derive_seed("init", config.seed)):
        model = build_detector(arguments, weights)
    content = {"task": "detection", "label_names": classes, "detector": arguments}
    return DetectionTask(config, run, accelerator, model, splits, content)
