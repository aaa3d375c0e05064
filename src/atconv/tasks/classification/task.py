"""What the trainer asks of a classifier: batches, loss, validation, files, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from atconv.data.transforms import EvalTransform
from atconv.engine.batch_plan import BatchPlan
from atconv.engine.checkpoint import latest_checkpoint
from atconv.engine.run import Run
from atconv.engine.trainer import History, Task
from atconv.io import save_tensors, write_atomically
from atconv.plots import Panel
from atconv.tasks.classification.config import ClassificationConfig
from atconv.tasks.classification.data import IndexedData, StreamData, data_config, open_data
from atconv.tasks.classification.model import make_model
from atconv.tasks.classification.objective import Objective
from atconv.tasks.classification.predictor import ClassificationPredictor
from atconv.tasks.common.report import report_run

__all__ = ["ClassificationTask", "make_task"]


class ClassificationTask(Task):
    """Training of a classifier."""

    monitor = "val_top1"

    def __init__(
        self,
        config: ClassificationConfig,
        run: Run,
        accelerator: Accelerator,
        data: IndexedData | StreamData,
        model: nn.Module,
    ) -> None:
        self.config, self.run, self.accelerator = config, run, accelerator
        self.data, self.model = data, model
        self.samples, self.pairs = data.samples, config.mixes
        self.streams = isinstance(data, StreamData)
        self.transform = EvalTransform(data_config(config))
        self.objective = Objective(config, len(data.classes), data.labels).to(accelerator.device)

    def batches(self, plan: BatchPlan, epoch: int, start: int) -> Iterator[Any]:
        return self.data.train_batches(plan, epoch, start)

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        return self.objective(model, images, labels, seed)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """val_loss, val_top1 and val_top5 (of more than five classes), over all processes."""
        was_training = model.training
        model.eval()
        device = self.accelerator.device
        sums = torch.zeros(4, device=device)  # loss, top-1 hits, top-5 hits, images
        for images, labels in self.data.val_batches(self.transform, self.config.batch_size):
            images, labels = images.to(device), labels.to(device)
            with self.accelerator.autocast():
                logits = model(images)
            logits = logits.float()
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack(
                [loss, hits[:, 0].sum(), hits.sum(), torch.tensor(len(labels), device=device)]
            )
        model.train(was_training)
        loss_sum, top1, top5, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        if count == 0:
            raise ValueError("the validation split has no images")
        metrics = {"val_loss": loss_sum / count, "val_top1": 100 * top1 / count}
        return metrics | ({"val_top5": 100 * top5 / count} if len(self.data.classes) > 5 else {})

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
        panels = [
            Panel("Loss", "cross-entropy", {"train, augmented": "train_loss", "validation": "val_loss"}),
            Panel("Accuracy", "top-1 (%)", {"train, augmented": "train_top1", "validation": "val_top1"}),
            Panel("Learning rate", "at the end of the epoch", {"learning rate": "lr"}),
        ]
        predictor = ClassificationPredictor.open(self.run).to(self.accelerator.device)
        batch_size, workers = max(self.config.batch_size, 32), self.config.workers
        metrics = predictor.evaluate_on(self.data.final, self.data.final_name, batch_size, workers)
        report_run(self.run, self.model, history, panels, predictor, metrics)


def make_task(config: ClassificationConfig, run: Run, accelerator: Accelerator) -> ClassificationTask:
    """Data and model of a configuration, put together.

    Raises:
        ValueError: data, model or weights do not fit.
    """
    data = open_data(config, run, accelerator)
    new = latest_checkpoint(run.checkpoints) is None  # else weights come from there
    model = make_model(config, len(data.classes), load_weights=new)
    return ClassificationTask(config, run, accelerator, data, model)
