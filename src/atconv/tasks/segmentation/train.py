"""Train a segmenter: pictures with masks and a segmenter put into the shared loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn

from atconv.data.masks import IGNORED, MaskSplit, open_masks
from atconv.engine.run import Run, next_run_dir
from atconv.engine.session import is_new, resume_run, start_run
from atconv.tasks.common.annotated_config import inherit_config
from atconv.tasks.common.annotated_task import DenseTask, open_sides
from atconv.tasks.segmentation.config import SegmentationConfig, read_config
from atconv.tasks.segmentation.data import SegmentTransform, augmentation, example
from atconv.tasks.segmentation.evaluation import Evaluation, count_pixels, mean_iou, report_side
from atconv.tasks.segmentation.model import OpenSegmenter, describe, make_model, open_segmenter

__all__ = ["resume", "train"]


def train(
    config: SegmentationConfig,
    run: str | Path | None = None,
    console: Console | None = None,
    chosen: Collection[str] = (),
) -> Path:
    """Train a segmenter from a configuration.

    Args:
        config: what to train on what, how.
        run: folder of the run; default: runs/DATA-MODEL, numbered where it exists.
        console: where progress shows; default: the terminal, and the run's log.txt.
        chosen: options that a run named as `weights` must not change: its backbone comes with it.

    Returns:
        the run's folder, which `atconv.tasks.dense.load` and `smp.from_pretrained` open.

    Raises:
        ValueError: an option, the masks or the weights do not fit; nothing was trained.
        FloatingPointError: the loss is not finite; checkpoints so far are kept.
        OSError: a disk is full or read-only; the last complete checkpoint is kept.
    """
    path = Path(run) if run is not None else next_run_dir(config.data, config.model)
    return start_run(inherit_config(config, chosen), path, _make_task, console)


def resume(run: str | Path, console: Console | None = None) -> Path:
    """Continue a run from its newest checkpoint, as it was configured. A finished run is left as it is.

    Raises:
        FileNotFoundError, ValueError: no such run, or its data or checkpoint is damaged or changed.
    """
    opened = Run.open(run)
    return resume_run(read_config(opened), opened, _make_task, console)


class SegmentationTask(DenseTask):
    """What the loop needs to know to train a segmenter."""

    config: SegmentationConfig
    sides: Mapping[str, MaskSplit]
    unit = "miou"

    def __init__(
        self,
        config: SegmentationConfig,
        run: Run,
        accelerator: Accelerator,
        model: nn.Module,
        sides: Mapping[str, MaskSplit],
    ) -> None:
        super().__init__(config, run, accelerator, model, sides)
        self.classes = sides["train"].classes
        self.augmentation = augmentation(config)
        self.dice = DiceLoss("multiclass", ignore_index=IGNORED)
        self.transform = SegmentTransform(config.in_chans, config.short_side, config.mean, config.std)

    def draw(self, position: int) -> tuple[Tensor, Tensor]:
        return self.augmentation(*example(self.sides["train"], position, self.transform.mode))

    @staticmethod
    def collate(examples: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in examples]), torch.stack([mask for _, mask in examples])

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and Dice, to which small classes count as much. Pixels left out do not count."""
        inputs, masks = (part.to(self.accelerator.device, non_blocking=True) for part in batch)
        logits = model(inputs).float()
        kept = (masks != IGNORED).sum().clamp(min=1)  # a crop may hold nothing else
        entropy = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum") / kept
        dice = self.dice(logits, masks)
        return entropy + dice, {"entropy": entropy, "dice": dice}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """val_miou and val_accuracy in percent, over all processes."""
        was_training = model.training
        opened = OpenSegmenter(model.eval(), self.transform, self.classes, flip_tta=False)
        side, accelerator = self.sides["val"], self.accelerator
        mine = range(accelerator.process_index, len(side), accelerator.num_processes)
        counts = count_pixels(opened, side, mine, self.plan.micro_batch, Console(quiet=True))
        counts = accelerator.reduce(counts.to(accelerator.device), reduction="sum").cpu()
        model.train(was_training)
        accuracy = 100 * int(counts.diag().sum()) / max(1, int(counts.sum()))
        return {"val_miou": mean_iou(counts), "val_accuracy": accuracy}

    def description(self) -> dict[str, Any]:
        return describe(self.config, self.model, self.classes)

    def judge(self, side: str, title: str, console: Console) -> Evaluation:
        opened = open_segmenter(self.run.path)
        opened.model.to(self.accelerator.device)
        return report_side(opened, self.sides[side], title, self.plan.micro_batch, self.run.path, console)


def _make_task(
    config: SegmentationConfig, run: Run, accelerator: Accelerator, console: Console
) -> SegmentationTask:
    with torch.device("meta"):  # what is wrong with the model is said before the data is read
        make_model(config, 2, Console(quiet=True), fresh=False)
    sides = open_sides(config, run, accelerator, lambda how: open_masks(config.data, how))
    told = ", ".join(f"{len(side)} {name}" for name, side in sides.items())
    classes = sides["train"].classes
    console.print(f"{len(classes)} classes, images: {told}", soft_wrap=True)
    model = make_model(config, len(classes), console, is_new(run))
    return SegmentationTask(config, run, accelerator, model, sides)
