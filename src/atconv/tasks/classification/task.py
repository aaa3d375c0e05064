"""What the trainer asks of a classifier: batches, loss, validation, files, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from atconv.data.images import mode_for
from atconv.data.transforms import EvalTransform
from atconv.engine.batch_plan import BatchPlan
from atconv.engine.checkpoint import latest_checkpoint
from atconv.engine.progress import heartbeat
from atconv.engine.rng import seeded
from atconv.engine.run import Run
from atconv.engine.task import Task
from atconv.engine.trainer import History
from atconv.io import save_tensors, write_atomically
from atconv.plots import Panel
from atconv.tasks.classification.augmentation import train_transform
from atconv.tasks.classification.config import ClassificationConfig
from atconv.tasks.classification.data import (
    IndexedData,
    StreamData,
    data_config,
    eval_batch_size,
    log_labels,
    open_data,
)
from atconv.tasks.classification.model import check_model, log_other_classes, make_model
from atconv.tasks.classification.objective import Objective, open_teacher
from atconv.tasks.classification.predictor import ClassificationPredictor
from atconv.tasks.common.report import report_run

__all__ = ["ClassificationTask", "make_task"]


class ClassificationTask(Task):
    """Training of a classifier. The best epoch is picked by top-1, where classes are evened out by
    balanced accuracy."""

    def __init__(
        self,
        config: ClassificationConfig,
        run: Run,
        accelerator: Accelerator,
        data: IndexedData | StreamData,
        model: nn.Module,
        teacher: nn.Module | None,
        min_batch: int,
    ) -> None:
        self.config, self.run, self.accelerator = config, run, accelerator
        self.data, self.model, self.min_batch = data, model, min_batch
        self.monitor = "val_balanced_accuracy" if config.evens_out else "val_top1"
        self.samples, self.pairs = data.samples, config.mixes
        self.streams = isinstance(data, StreamData)
        self.transform = EvalTransform(data_config(config))
        self.objective = Objective(config, data.classes, data.labels, teacher).to(accelerator.device)

    def batches(self, plan: BatchPlan, epoch: int, start: int) -> Iterator[Any]:
        return self.data.train_batches(plan, epoch, start)

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        return self.objective(model, images, labels, seed)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """val_loss, val_top1, val_top5 (of more than five classes) and val_balanced_accuracy, over all
        processes."""
        was_training = model.training
        model.eval()
        device = self.accelerator.device
        sums = torch.zeros(2, device=device)  # loss, top-5 hits
        right, images_of = torch.zeros(2, len(self.data.classes), device=device)  # by class
        batches = self.data.val_batches(self.transform, eval_batch_size(self.config))
        for images, labels in heartbeat(batches, "validating"):
            images, labels = (part.to(device, non_blocking=True) for part in (images, labels))
            with self.accelerator.autocast():
                logits = model(images)
            logits = logits.float()
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([loss, hits.sum()])
            right.index_add_(0, labels, hits[:, 0].float())
            images_of.index_add_(0, labels, torch.ones_like(hits[:, 0], dtype=torch.float32))
        model.train(was_training)
        reduced = self.accelerator.reduce(torch.cat([sums, right, images_of]), reduction="sum").double()
        (loss_sum, top5), (right, images_of) = reduced[:2].tolist(), reduced[2:].view(2, -1)
        count = int(images_of.sum())
        if count == 0:
            raise ValueError("the validation split has no images")
        metrics = {"val_loss": loss_sum / count, "val_top1": 100 * float(right.sum()) / count}
        if len(self.data.classes) > 5:
            metrics["val_top5"] = 100 * top5 / count
        recalls = right[images_of > 0] / images_of[images_of > 0]
        return metrics | {"val_balanced_accuracy": 100 * float(recalls.mean())}

    def save_config(self) -> None:
        """config.json for timm and transformers: architecture, arguments, input, label names."""
        write_atomically(self.run.model_config, self._write_config)

    def _write_config(self, path: Path) -> None:
        labels, data = {"label_names": self.data.classes}, data_config(self.config)
        save_config_for_hf(self.model, str(path), model_config=labels, data_config=data)
        content = json.loads(path.read_text())
        # It stands outside the arguments too, and transformers would give it to the model twice.
        content.get("model_args", {}).pop("num_classes", None)
        path.write_text(json.dumps(content, indent=2))

    def save_model(self, model: nn.Module) -> None:
        save_tensors(model.state_dict(), self.run.weights)

    def report(self, history: History) -> None:
        accuracy = {"train, augmented": "train_top1", "validation": "val_top1"}
        if self.config.evens_out:
            accuracy["validation, balanced"] = "val_balanced_accuracy"
        panels = [
            Panel("Loss", "cross-entropy", {"train, augmented": "train_loss", "validation": "val_loss"}),
            Panel("Accuracy", "top-1 (%)", accuracy),
            Panel("Learning rate", "at the end of the epoch", {"learning rate": "lr"}),
        ]
        predictor = ClassificationPredictor.open(self.run).to(self.accelerator.device)
        metrics = predictor.evaluate_on(
            self.data.final, self.data.final_name, eval_batch_size(self.config), self.config.workers
        )
        report_run(self.run, self.model, history, panels, predictor, metrics)


def make_task(config: ClassificationConfig, run: Run, accelerator: Accelerator) -> ClassificationTask:
    """Data and model of a configuration, put together.

    Raises:
        ValueError: data, model or weights do not fit.
    """
    new = latest_checkpoint(run.checkpoints) is None  # else weights come from there
    # Fail fast: what is wrong with an option is said before data is read.
    min_batch, teacher = check_model(config, load_weights=new), open_teacher(config)
    for transform in (train_transform(config), EvalTransform(data_config(config))):
        with seeded(config.seed):
            transform(Image.new(mode_for(config.in_chans), (config.image_size, config.image_size)))
    data = open_data(config, run, accelerator)
    if new and isinstance(data, IndexedData) and accelerator.is_main_process:
        log_labels(config, data.splits)
    model = make_model(config, len(data.classes), load_weights=new)
    if new and config.checkpoint is not None and accelerator.is_main_process:
        log_other_classes(config, data.classes)
    return ClassificationTask(config, run, accelerator, data, model, teacher, min_batch)
