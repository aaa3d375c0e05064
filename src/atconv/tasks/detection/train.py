"""Train a detector: annotated pictures and a detector put into the shared loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from atconv.data.coco import CocoSplit, open_coco
from atconv.data.images import mode_for
from atconv.engine.run import Run, next_run_dir
from atconv.engine.session import is_new, resume_run, start_run
from atconv.tasks.common.annotated_config import inherit_config
from atconv.tasks.common.annotated_task import DenseTask, open_sides
from atconv.tasks.detection.config import DetectionConfig, read_config
from atconv.tasks.detection.data import Target, augmentation, example
from atconv.tasks.detection.evaluation import Evaluation, mean_average_precision, report_side
from atconv.tasks.detection.model import describe, make_model, open_detector

__all__ = ["resume", "train"]


def train(
    config: DetectionConfig,
    run: str | Path | None = None,
    console: Console | None = None,
    chosen: Collection[str] = (),
) -> Path:
    """Train a detector from a configuration.

    Args:
        config: what to train on what, how.
        run: folder of the run; default: runs/DATA-MODEL, numbered where it exists.
        console: where progress shows; default: the terminal, and the run's log.txt.
        chosen: options that a run named as `weights` must not change: its backbone comes with it.

    Returns:
        the run's folder, which `atconv.tasks.dense.load` opens.

    Raises:
        ValueError: an option, the annotations or the weights do not fit; nothing was trained.
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


class DetectionTask(DenseTask):
    """What the loop needs to know to train a detector."""

    config: DetectionConfig
    sides: Mapping[str, CocoSplit]
    unit = "map"

    def __init__(
        self,
        config: DetectionConfig,
        run: Run,
        accelerator: Accelerator,
        model: nn.Module,
        sides: Mapping[str, CocoSplit],
    ) -> None:
        super().__init__(config, run, accelerator, model, sides)
        self.mode = mode_for(config.in_chans)
        self.augmentation = augmentation(config.hflip, config.color_jitter)

    def draw(self, position: int) -> tuple[Tensor, Target]:
        return self.augmentation(*example(self.sides["train"], position, self.mode, self.config.masks))

    @staticmethod
    def collate(examples: Sequence[tuple[Any, Any]]) -> tuple[list[Tensor], list[Target]]:
        return [image for image, _ in examples], [target for _, target in examples]

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the detector's losses. It draws sizes and samples of boxes from torch's generator, which
        the loop has seeded by the step."""
        device = self.accelerator.device
        images = [image.to(device, non_blocking=True) for image in batch[0]]
        targets = [{name: part.to(device) for name, part in target.items()} for target in batch[1]]
        parts = model(images, targets)
        return torch.stack(list(parts.values())).sum(), {n.removeprefix("loss_"): p for n, p in parts.items()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """val_map and val_map_50 of boxes, and val_mask_map where there are masks, over all processes."""
        was_training = model.training
        model.eval()
        side, accelerator = self.sides["val"], self.accelerator
        mine = range(accelerator.process_index, len(side), accelerator.num_processes)
        size = self.plan.micro_batch
        found = mean_average_precision(model, side, mine, self.mode, self.config.masks, size)
        model.train(was_training)
        return {f"val_{name}": value for name, value in found.items()}

    def description(self) -> dict[str, Any]:
        return describe(self.config, self.sides["train"].classes)

    def judge(self, side: str, title: str, console: Console) -> Evaluation:
        opened = open_detector(self.run.path)
        opened.model.to(self.accelerator.device)
        return report_side(opened, self.sides[side], title, self.plan.micro_batch, self.run.path, console)


def _make_task(
    config: DetectionConfig, run: Run, accelerator: Accelerator, console: Console
) -> DetectionTask:
    with torch.device("meta"):  # what is wrong with the model is said before the data is read
        make_model(config, 1, Console(quiet=True), fresh=False)
    read = partial(open_coco, config.data, config.masks, bad_annotations=config.bad_annotations)
    sides = open_sides(config, run, accelerator, read)
    told = ", ".join(f"{len(side)} {name}" for name, side in sides.items())
    for name in ("train", "val"):
        if not sides[name].objects:
            raise ValueError(
                f"the {name} side has no boxes of single objects: training needs some to learn from and to "
                "be judged by. Annotate more, or hold out more with --val_fraction"
            )
    classes, boxes = sides["train"].classes, sides["train"].objects
    console.print(f"{len(classes)} classes, {boxes} boxes to train on, images: {told}", soft_wrap=True)
    model = make_model(config, len(classes), console, is_new(run))
    return DetectionTask(config, run, accelerator, model, sides)
