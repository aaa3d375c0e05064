"""What the trainer asks of a classifier: batches, loss, validation, files, report."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from atconv.data.images import mode_for
from atconv.data.imbalance import log_classes
from atconv.data.splits import open_splits
from atconv.data.transforms import EvalTransform
from atconv.engine.batch_plan import BatchPlan
from atconv.engine.checkpoint import latest_checkpoint
from atconv.engine.history import History
from atconv.engine.reading import read_json
from atconv.engine.rng import seeded
from atconv.engine.run import Run
from atconv.engine.task import Task
from atconv.io import save_tensors, write_atomically
from atconv.plots import Panel
from atconv.tasks.classification.augmentation import train_transform
from atconv.tasks.classification.config import MULTI_LABEL, ClassificationConfig
from atconv.tasks.classification.data import (
    ClassificationData,
    data_config,
    eval_batch_size,
    imbalance_advice,
    occurrences,
)
from atconv.tasks.classification.model import check_model, make_model
from atconv.tasks.classification.multi_label import MultiLabelObjective
from atconv.tasks.classification.objective import Objective, open_teacher
from atconv.tasks.classification.predictor import ClassificationPredictor
from atconv.tasks.classification.unfreezing import Unfreezing
from atconv.tasks.common.report import report_run
from atconv.tasks.common.start import log_other_classes

__all__ = ["ClassificationTask", "make_task"]

logger = logging.getLogger(__name__)


class ClassificationTask(Task):
    """Training of a classifier. The best epoch is picked by top-1, where classes are evened out by
    balanced accuracy."""

    def __init__(
        self,
        config: ClassificationConfig,
        run: Run,
        accelerator: Accelerator,
        data: ClassificationData,
        model: nn.Module,
        teacher: nn.Module | None,
        min_batch: int,
    ) -> None:
        self.config, self.run, self.accelerator = config, run, accelerator
        self.data, self.model, self.min_batch = data, model, min_batch
        self.samples, self.pairs = data.samples, config.mixes
        self.transform = EvalTransform(data_config(config))
        kind = MultiLabelObjective if data.multi_label else Objective
        self.objective = kind(config, data.classes, data.labels, teacher).to(accelerator.device)
        self.monitor = self.objective.monitor
        self.unfreezing: Unfreezing | None = None
        if config.unfreezes:
            self.unfreezing = Unfreezing(model, config.head_epochs, config.unfreeze_epochs)
            if accelerator.is_main_process:
                logger.info(self.unfreezing.describe(config.epochs))

    def prepare_epoch(self, epoch: int) -> None:
        if self.unfreezing is not None:
            self.unfreezing.apply(epoch)

    def batches(self, plan: BatchPlan, epoch: int, start: int) -> Iterator[Any]:
        return self.data.train_batches(plan, epoch, start)

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        return self.objective(model, images, labels, seed)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        batches = self.data.val_batches(self.transform, eval_batch_size(self.config))
        return self.objective.validate(model, batches, self.accelerator)

    def save_config(self) -> None:
        """config.json for timm and transformers: architecture, arguments, input, label names."""
        write_atomically(self.run.model_config, self._write_config)

    def _write_config(self, path: Path) -> None:
        about = {"label_names": self.data.classes, **self.objective.model_config(self.run)}
        save_config_for_hf(self.model, str(path), model_config=about, data_config=data_config(self.config))
        content = json.loads(path.read_text())
        # It stands outside the arguments too, and transformers would give it to the model twice.
        content.get("model_args", {}).pop("num_classes", None)
        path.write_text(json.dumps(content, indent=2))

    def save_model(self, model: nn.Module) -> None:
        save_tensors(model.state_dict(), self.run.weights)

    def report(self, history: History) -> None:
        predictor = ClassificationPredictor.open(self.run).to(self.accelerator.device)
        self.objective.finish(predictor, self.data.val)
        metrics = predictor.evaluate_on(
            self.data.final, self.data.final_name, eval_batch_size(self.config), self.config.workers
        )
        lr = Panel("Learning rate", "at the end of the epoch", {"learning rate": "lr"})
        panels = [*self.objective.panels(), lr]
        absent = occurrences(self.data.val).absent if self.monitor != "val_top1" else []
        report_run(self.run, self.model, history, panels, predictor, metrics, absent)


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
    data = ClassificationData(config, open_splits(config, config.seed, run, accelerator), accelerator)
    if new and accelerator.is_main_process:
        counts = {name: occurrences(split) for name, split in data.splits.by_name.items()}
        log_classes(counts, imbalance_advice(config, data.multi_label))
    model = make_model(config, len(data.classes), load_weights=new)
    if new and config.checkpoint is not None and accelerator.is_main_process:
        log_other_classes(config, data.classes, "the classifier head")
        _log_other_kind(config, data.multi_label)
    return ClassificationTask(config, run, accelerator, data, model, teacher, min_batch)


def _log_other_kind(config: ClassificationConfig, multi_label: bool) -> None:
    """Say that weights come from a run with another number of labels an image."""
    source = config.source_run()
    if source is None:
        return
    problem = read_json(source.model_config, {"problem_type": str | None}).get("problem_type")
    if (problem == MULTI_LABEL) != multi_label:
        kinds = ("one label", "several labels") if multi_label else ("several labels", "one label")
        logger.info("%s was trained for %s an image, this run is for %s", config.checkpoint, *kinds)
