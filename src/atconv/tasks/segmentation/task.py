"""What the trainer asks of a segmenter."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from accelerate import Accelerator
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn

from atconv.data.formats import open_masks
from atconv.data.imbalance import Occurrences
from atconv.data.masks.split import IGNORED, MaskSplit
from atconv.data.unreadable import CheckImages, in_threads
from atconv.engine.run import Run
from atconv.tasks.common.annotated_task import AnnotatedTask
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.segmentation.data import EvalExamples, SegmentationTransform, TrainExamples, predictions
from atconv.tasks.segmentation.metrics import count_pixels, mean_iou, pixel_accuracy
from atconv.tasks.segmentation.predictor import SegmentationPredictor, classify_pixels

__all__ = ["SegmentationTask", "make_task"]


class SegmentationTask(AnnotatedTask[SegmentationConfig, MaskSplit]):
    """Training of a segmenter."""

    monitor = "val_miou"
    predictor = SegmentationPredictor

    def __init__(self, config: SegmentationConfig, run: Run, accelerator: Accelerator) -> None:
        super().__init__(config, run, accelerator)
        self.transform = SegmentationTransform(config.in_chans, config.short_side, config.mean, config.std)
        self.examples = TrainExamples(self.splits["train"], config)
        self.eval_examples = EvalExamples(self.splits["val"], self.transform)
        self.min_batch = config.min_batch
        self.dice = DiceLoss("multiclass", ignore_index=IGNORED)

    def open_data(self, check: CheckImages) -> dict[str, MaskSplit]:
        config = self.config
        return open_masks(
            config.data,
            check,
            config,
            exif=config.exif,
            images=config.images,
            skip_unreadable=True,
        )

    def count_classes(self, split: MaskSplit) -> Occurrences:
        def count(position: int) -> dict[int, int]:
            labels, pixels = np.unique(split.mask(position), return_counts=True)
            return {int(i): int(n) for i, n in zip(labels, pixels, strict=True) if i != IGNORED}

        return Occurrences.of_counts(split.classes, in_threads(count, len(split), "counting pixels"), "pixel")

    def model_config(self) -> dict[str, Any]:
        """`smp.from_pretrained(RUN)` opens it too, where atconv is imported: it skips names that begin
        with _."""
        model: Any = self.model
        content = {
            "task": "segmentation",
            "label_names": self.classes,
            "segmenter": self.config.model_arguments(len(self.classes)),
            "transform": {
                "short_side": self.config.short_side,
                "mean": self.transform.mean,
                "std": self.transform.std,
            },
            "flip_tta": self.config.flip_tta,
        }
        return {**model.config, "_model_class": type(model).__name__, "_atconv": content}

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and Dice, to which small classes count as much. Ignored pixels do not count."""
        inputs, masks = batch
        logits = model(inputs).float()
        labeled = (masks != IGNORED).sum().clamp(min=1)  # a crop may hold nothing else
        entropy = (
            F.cross_entropy(logits, masks, self.class_weights, ignore_index=IGNORED, reduction="sum")
            / labeled
        )
        dice = self.dice(logits, masks)
        return entropy + dice, {"entropy": entropy, "dice": dice}

    def validate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """miou and accuracy in percent."""
        classify = partial(classify_pixels, model, self.transform)
        counts, _ = count_pixels(predictions(batches, classify), len(self.classes))
        counts = self.accelerator.reduce(counts.to(self.accelerator.device), reduction="sum").cpu()
        return {"miou": mean_iou(counts), "accuracy": pixel_accuracy(counts)}


make_task = SegmentationTask
