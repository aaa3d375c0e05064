"""What the trainer asks of a segmenter."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn

from atconv.data.masks import IGNORED, MaskSplit, open_masks
from atconv.engine.rng import derive_seed, seeded
from atconv.engine.run import Run
from atconv.tasks.common.annotated_task import AnnotatedTask, open_splits, starting_weights
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.segmentation.data import SegmentationTransform, augmentation, load_example, predictions
from atconv.tasks.segmentation.metrics import count_pixels, mean_iou, pixel_accuracy
from atconv.tasks.segmentation.predictor import SegmentationPredictor, build_segmenter, classify_pixels

__all__ = ["SegmentationTask", "make_task"]

logger = logging.getLogger(__name__)


class SegmentationTask(AnnotatedTask[MaskSplit]):
    """Training of a segmenter."""

    monitor = "val_miou"
    predictor = SegmentationPredictor

    def __init__(
        self,
        config: SegmentationConfig,
        run: Run,
        accelerator: Accelerator,
        model: nn.Module,
        splits: dict[str, MaskSplit],
        model_config: dict[str, Any],
    ) -> None:
        super().__init__(config, run, accelerator, model, splits, model_config)
        self.augmentation = augmentation(config)
        self.dice = DiceLoss("multiclass", ignore_index=IGNORED)
        self.transform = SegmentationTransform(config.in_chans, config.short_side, config.mean, config.std)

    def load(self, position: int) -> tuple[Tensor, Tensor]:
        return self.augmentation(*load_example(self.splits["train"], position, self.transform.mode))

    @staticmethod
    def collate(examples: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in examples]), torch.stack([mask for _, mask in examples])

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and Dice, to which small classes count as much. Ignored pixels do not count."""
        inputs, masks = batch
        logits = model(inputs).float()
        labeled = (masks != IGNORED).sum().clamp(min=1)  # a crop may hold nothing else
        entropy = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum") / labeled
        dice = self.dice(logits, masks)
        return entropy + dice, {"entropy": entropy, "dice": dice}

    def validate(self, model: nn.Module, split: MaskSplit, positions: Sequence[int]) -> dict[str, float]:
        """miou and accuracy in percent."""
        classify = partial(classify_pixels, model, self.transform)
        pairs = predictions(split, positions, self.transform, classify, self.batch_size)
        counts = count_pixels(pairs, len(split.classes)).to(self.accelerator.device)
        counts = self.accelerator.reduce(counts, reduction="sum").cpu()
        return {"miou": mean_iou(counts), "accuracy": pixel_accuracy(counts)}


def make_task(config: SegmentationConfig, run: Run, accelerator: Accelerator) -> SegmentationTask:
    """Data and model of a configuration, put together.

    Raises:
        ValueError: data, model or weights do not fit.
    """
    with torch.device("meta"):  # fail fast: what is wrong with the model, before the data is read
        build_segmenter(config.model_arguments(2))
    splits = open_splits(config, run, accelerator, partial(open_masks, config.data))
    classes = splits["train"].classes
    counts = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    logger.info("%d classes, images: %s", len(classes), counts)
    arguments = config.model_arguments(len(classes))
    weights = starting_weights(config, run)
    with seeded(derive_seed("init", config.seed)):
        model: Any = build_segmenter(arguments, weights)
    transform = SegmentationTransform(config.in_chans, config.short_side, config.mean, config.std)
    own = {
        "task": "segmentation",
        "label_names": classes,
        "segmenter": arguments,
        "transform": {"short_side": config.short_side, "mean": transform.mean, "std": transform.std},
        "flip_tta": config.flip_tta,
    }
    # `smp.from_pretrained(RUN)` opens this too, where atconv is imported: it skips names that begin with _.
    content = {**model.config, "_model_class": type(model).__name__, "_atconv": own}
    return SegmentationTask(config, run, accelerator, model, splits, content)
