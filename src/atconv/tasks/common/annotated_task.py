"""What detection and segmentation ask of the trainer in the same way."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from atconv.data.annotated import AnnotatedSplit, batches_of_equal_size
from atconv.data.annotated_splits import (
    drop_copies,
    read_saved_split,
    save_or_check_split,
    train_val_test_split,
)
from atconv.data.config import log_unused_fractions
from atconv.data.imbalance import Occurrences, class_weights, image_weights, log_classes
from atconv.data.loaders import EpochBatches, EpochLoader, Items, SeededItems
from atconv.data.unreadable import CheckImages
from atconv.engine.batch_plan import BatchPlan
from atconv.engine.checkpoint import latest_checkpoint
from atconv.engine.history import History
from atconv.engine.progress import heartbeat
from atconv.engine.reading import read_json
from atconv.engine.recipes import read_config
from atconv.engine.rng import derive_seed, seeded
from atconv.engine.run import Run
from atconv.engine.task import Task
from atconv.io import count_of, save_tensors, write_json
from atconv.models.attnet import AttNet
from atconv.models.release import load_release
from atconv.plots import Panel
from atconv.tasks.common.annotated_config import AnnotatedConfig
from atconv.tasks.common.annotated_predictor import AnnotatedPredictor
from atconv.tasks.common.metric_names import metric_name
from atconv.tasks.common.report import report_run
from atconv.tasks.common.start import classes_of, load_from_run, log_difference, log_other_classes

__all__ = ["AnnotatedTask"]

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=AnnotatedConfig)
S = TypeVar("S", bound=AnnotatedSplit)


class AnnotatedTask(Task, Generic[C, S]):
    """Data and model of a configuration, put together.

    Raises:
        ValueError: data, model or weights do not fit.
    """

    predictor: ClassVar[type[AnnotatedPredictor[Any, Any, Any]]]
    collate: Callable[[Any], Any] | None = None
    """makes a batch of examples; default: as torch does"""
    examples: Callable[[int], tuple[Any, Any]]
    """a training image and its target by position, augmented"""
    eval_examples: Callable[[int], tuple[Any, Any]]
    """a validation image and its target by position"""

    def __init__(self, config: C, run: Run, accelerator: Accelerator) -> None:
        self.config, self.run, self.accelerator = config, run, accelerator
        new = latest_checkpoint(run.checkpoints) is None  # else weights come from there
        # Fail fast: what is wrong with the model or its weights is said before the data is read.
        with torch.device("meta"):
            self.predictor.build_model(config.model_arguments(2))
        source = config.source_run() if new else None
        whole = source.read_weights() if source is not None and config.continues(source) else None
        starts = new and config.checkpoint is not None
        backbone = _backbone_weights(config) if starts and whole is None else None
        # The main process checks the files while the others wait.
        with accelerator.main_process_first():
            check = config.check_images if accelerator.is_main_process else "none"
            opened = self.open_data(check)
            if accelerator.is_main_process:
                opened = drop_copies(opened, config.max_skipped, run.path / "skipped.csv")
                if "val" in opened:
                    reason = f"DATA {config.data} comes with a validation split"
                    log_unused_fractions(config, ["val_fraction"], reason)
                self.splits = train_val_test_split(opened, config.val_fraction, config.seed)
                save_or_check_split(run.split, self.splits)
            else:
                self.splits = read_saved_split(run.split, opened)
        self.check_splits()
        self.samples, self.classes = len(self.splits["train"]), self.splits["train"].classes
        counts = ", ".join(f"{len(split)} {name}" for name, split in self.splits.items())
        logger.info("%s, images: %s", count_of(len(self.classes), "class", "classes"), counts)
        self.occurrences = self._count(new)
        self.weights, self.class_weights = None, None
        if self.occurrences is not None:
            self.weights = image_weights(self.occurrences, config.sampler, config.repeat_threshold)
            by_class = class_weights(self.occurrences, config.class_weights, config.class_weight_beta)
            if by_class is not None:
                self.class_weights = torch.tensor(by_class).float().to(accelerator.device)
        with seeded(derive_seed("init", config.seed)):
            arguments = config.model_arguments(len(self.classes))
            self.model = self.predictor.build_model(arguments, backbone)
        if source is not None:
            self._start(source, whole)

    def _start(self, source: Run, whole: Mapping[str, Tensor] | None) -> None:
        """Load the weights of the `whole` model of a run, and say what differs there."""
        config = self.config
        if whole is None:
            there, here = len(classes_of(source)), len(self.classes)
            log_difference(config, "classes", there, here, "only the backbone is taken")
            shape = read_json(source.model_config, {}, inside="pretrained_cfg")["input_size"]
            sizes = f"image_size {shape[1]}"
        else:
            load_from_run(self.model, whole, config)
            log_other_classes(config, self.classes, "what depends on their number")
            sizes = read_config(source, type(config), config.task_name).image_sizes
        log_difference(config, "image size", sizes, config.image_sizes, "the weights take any size")

    @abstractmethod
    def open_data(self, check: CheckImages) -> Mapping[str, S]:
        """The splits of DATA by name."""

    @abstractmethod
    def count_classes(self, split: S) -> Occurrences:
        """How much of each class is in each image."""

    def _count(self, new: bool) -> Occurrences | None:
        """What there is of each class to train on, where a loss or sampler asks for it; the main process of a
        new run tells it."""
        evens_out = self.config.sampler != "shuffle" or self.config.class_weights != "none"
        tells = new and self.accelerator.is_main_process
        names = list(self.splits) if tells else ["train"] if evens_out else []
        counts = {name: self.count_classes(self.splits[name]) for name in names}
        if tells:
            option = (
                "--sampler repeat_factor shows images of rare classes more often, --class-weights effective "
                "weighs them more"
            )
            log_classes(counts, "They are evened out" if evens_out else option)
        return counts["train"] if evens_out else None

    def check_splits(self) -> None:
        """Raise ValueError where splits cannot be trained on."""

    @abstractmethod
    def validate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """Metrics of a model in eval mode, over all processes, of which each has its own batches of
        `eval_examples`."""

    @abstractmethod
    def model_config(self) -> dict[str, Any]:
        """Content of config.json, which the predictor is opened from."""

    def batches(self, plan: BatchPlan, epoch: int, start: int) -> Iterator[Any]:
        rank = self.accelerator.process_index
        keys = EpochBatches(
            self.samples, plan, self.config.seed, epoch, rank, start=start, weights=self.weights
        )
        return self._loader.batches(keys)

    @cached_property
    def _loader(self) -> EpochLoader[Any]:
        examples, device = SeededItems(self.examples), self.accelerator.device
        return EpochLoader(examples, self.config.workers, device, self.collate)

    @cached_property
    def _val_loader(self) -> EpochLoader[Any]:
        examples, device = Items(self.eval_examples), self.accelerator.device
        return EpochLoader(examples, self.config.workers, device, self.collate)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        was_training = model.training
        val, accelerator = self.splits["val"], self.accelerator
        positions = range(accelerator.process_index, len(val), accelerator.num_processes)
        keys = batches_of_equal_size(val, positions, self.config.batch_size)
        batches = self._val_loader.batches(heartbeat(keys, "validating"))
        metrics = self.validate(model.eval(), batches)
        model.train(was_training)
        return {f"val_{name}": value for name, value in metrics.items()}

    def save_config(self) -> None:
        write_json(self.run.model_config, self.model_config())

    def save_model(self, model: nn.Module) -> None:
        save_tensors(model.state_dict(), self.run.weights)

    def report(self, history: History) -> None:
        column = str(self.monitor)
        name = metric_name(column.removeprefix("val_"))
        panels = [
            Panel("Loss", "sum of all parts", {"train": "train_loss"}),
            Panel(f"Validation {name}", "%", {name: column}),
            Panel("Learning rate", "at the end of the epoch", {"learning rate": "lr"}),
        ]
        predictor = self.predictor.open(self.run).to(self.accelerator.device)
        split, config = "test" if "test" in self.splits else "val", self.config
        metrics = predictor.evaluate_on(split, self.splits[split], config.batch_size, config.workers)
        absent = self.count_classes(self.splits["val"]).absent
        report_run(self.run, self.model, history, panels, predictor, metrics, absent)


def _backbone_weights(config: AnnotatedConfig) -> dict[str, Tensor]:
    """Weights of the classifier that a new run's backbone starts from."""
    path, run = Path(str(config.checkpoint)), config.source_run()
    if run is not None:
        state_dict = run.read_weights()
    else:
        model = timm.create_model(config.model, in_chans=config.in_chans, **config.model_args)
        if not isinstance(model, AttNet):
            raise ValueError(f"weights for {config.model} come from a run's folder; {path} is not one")
        load_release(model, path)
        state_dict = model.state_dict()
    logger.info(
        "the backbone, %s with in_chans %d, starts from %s; all else is newly initialized",
        *(config.model, config.in_chans, path),
    )
    return state_dict
