"""What the trainer asks of a classifier: batches, loss, validation, files, report."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from atconv.data.images import PrepareImage, mode_for
from atconv.data.imbalance import image_weights, log_classes
from atconv.data.loaders import EpochBatches, eval_loader, train_loader
from atconv.data.splits import Split, Splits, open_splits
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
from atconv.tasks.classification.augmentation import reduced_crop, train_transform
from atconv.tasks.classification.config import MULTI_LABEL, ClassificationConfig
from atconv.tasks.classification.data import data_config, imbalance_advice, occurrences
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
        splits: Splits,
        model: nn.Module,
        teacher: nn.Module | None,
        min_batch: int,
    ) -> None:
        self.config, self.run, self.accelerator = config, run, accelerator
        self.splits, self.model, self.min_batch = splits, model, min_batch
        train = splits["train"]
        self.samples, self.pairs = len(train), config.mixes
        self.weights = image_weights(occurrences(train), config.sampler, config.repeat_threshold)
        prepare, transform = PrepareImage(config.in_chans), train_transform(config)
        if config.reduced_decode:
            prepare, transform = reduced_crop(transform, config.in_chans)
        self.loader = train_loader(train, transform, prepare, config.workers, accelerator.device)
        self.transform = EvalTransform(data_config(config))
        kind = MultiLabelObjective if train.source.multi_label else Objective
        labels = train.source.labels[train.indices] if config.class_weights != "none" else None
        self.objective = kind(config, splits.classes, labels, teacher).to(accelerator.device)
        self.monitor = self.objective.monitor
        self.unfreezing: Unfreezing | None = None
        if config.head_epochs:
            self.unfreezing = Unfreezing(model, config.head_epochs, config.unfreeze_epochs)
            if accelerator.is_main_process:
                logger.info(self.unfreezing.describe(config.epochs))

    def prepare_epoch(self, epoch: int) -> None:
        if self.unfreezing is not None:
            self.unfreezing.apply(epoch)

    def batches(self, plan: BatchPlan, epoch: int, start: int) -> Iterator[Any]:
        config, rank, shards = self.config, self.accelerator.process_index, self.splits["train"].shards
        keys = EpochBatches(
            self.samples, plan, config.seed, epoch, rank, config.repeats, start, self.weights, shards
        )
        return self.loader.batches(keys)

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        return self.objective(model, images, labels, seed)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.objective.validate(model, self._val_loader, self.accelerator)

    @cached_property
    def _val_loader(self) -> DataLoader[Any]:
        """This process's share of the validation images."""
        config, val, accelerator = self.config, self.splits["val"], self.accelerator
        share = Split(val.source, val.indices[accelerator.process_index :: accelerator.num_processes])
        prepare = self.transform.reduced if config.reduced_decode else self.transform.prepare
        size, workers = config.eval_batch_size, config.workers
        return eval_loader(share, self.transform, prepare, size, workers, accelerator.device)

    def save_config(self) -> None:
        """config.json for timm and transformers: architecture, arguments, input, label names."""
        write_atomically(self.run.model_config, self._write_config)

    def _write_config(self, path: Path) -> None:
        about = {"label_names": self.splits.classes, **self.objective.model_config(self.run)}
        save_config_for_hf(self.model, str(path), model_config=about, data_config=data_config(self.config))
        content = json.loads(path.read_text())
        # It stands outside the arguments too, and transformers would give it to the model twice.
        content.get("model_args", {}).pop("num_classes", None)
        path.write_text(json.dumps(content, indent=2))

    def save_model(self, model: nn.Module) -> None:
        save_tensors(model.state_dict(), self.run.weights)

    def report(self, history: History) -> None:
        predictor = ClassificationPredictor.open(self.run).to(self.accelerator.device)
        config, splits = self.config, self.splits
        self.objective.finish(predictor, splits["val"])
        final, size = splits[splits.final], config.eval_batch_size
        metrics = predictor.evaluate_on(final, splits.final, size, config.workers)
        lr = Panel("Learning rate", "at the end of the epoch", {"learning rate": "lr"})
        panels = [*self.objective.panels(), lr]
        absent = occurrences(splits["val"]).absent if self.monitor != "val_top1" else []
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
    splits = open_splits(config, config.seed, run, accelerator)
    classes, multi_label = splits.classes, splits["train"].source.multi_label
    if new and accelerator.is_main_process:
        counts = {name: occurrences(split) for name, split in splits.by_name.items()}
        log_classes(counts, imbalance_advice(config, multi_label))
    model = make_model(config, len(classes), load_weights=new)
    if new and config.checkpoint is not None and accelerator.is_main_process:
        log_other_classes(config, classes, "the classifier head")
        _log_other_kind(config, multi_label)
    return ClassificationTask(config, run, accelerator, splits, model, teacher, min_batch)


def _log_other_kind(config: ClassificationConfig, multi_label: bool) -> None:
    """Say that weights come from a run with another number of labels an image."""
    source = config.source_run()
    if source is None:
        return
    problem = read_json(source.model_config, {"problem_type": str | None}).get("problem_type")
    if (problem == MULTI_LABEL) != multi_label:
        kinds = ("one label", "several labels") if multi_label else ("several labels", "one label")
        logger.info("%s was trained for %s an image, this run is for %s", config.checkpoint, *kinds)
