"""What is tried out before a run starts: the micro-batch that fits memory, and the learning rate.

Copies of the model are trained for a few steps. What they find goes into the configuration: the run is then,
bit for bit, one that was started with it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, count
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from torch import nn

from atconv.engine.batch_plan import plan_batches
from atconv.engine.config import TrainConfig
from atconv.engine.learning_rate_test import LearningRateTest, Rising, run_test
from atconv.engine.progress import progress
from atconv.engine.rng import seeded
from atconv.engine.task import Task
from atconv.engine.trainer import Trainer, set_training_mode
from atconv.io import write_rows

__all__ = ["as_in_last_epoch", "tune"]

logger = logging.getLogger(__name__)


def tune(config: TrainConfig, task: Task) -> None:
    """Search what a configuration asks for, and write it into that configuration.

    Raises:
        ValueError: no batch fits memory, or batches are tried in several processes.
    """
    accelerator = task.accelerator
    if config.auto_find_batch_size:
        if accelerator.num_processes > 1:
            raise ValueError(
                "auto_find_batch_size tries sizes in one process: give to all with --batch-size what it finds"
            )
        smallest = max(2 if task.pairs else 1, task.min_batch)
        asked, config.auto_find_batch_size = config.batch_size, False
        _find_batch_size(config, task, smallest)
        logger.info("batch_size %d fits memory (%d asked for)", config.batch_size, asked)
    if config.find_lr:
        config.find_lr = False
        with _trial(config, task) as trainer:
            found = _test_learning_rates(trainer)
        if accelerator.is_main_process:
            write_rows(task.run.path / "find_lr.csv", found.rows())
            found.plot(config.lr, task.run.path / "find_lr.png")
            logger.info("%s (%s)", found.describe(config.lr), task.run.path / "find_lr.png")
        config.lr = found.suggestion or config.lr
    accelerator.free_memory()


@contextmanager
def _trial(config: TrainConfig, task: Task) -> Iterator[Trainer]:
    """A trainer of a copy of the model, in which trains what does in the last epoch: no epoch trains more.
    What it shares with the run is as before in the end."""
    accelerator = task.accelerator
    accelerator.free_memory()  # of the trial before
    copied = copy.copy(task)
    copied.model = as_in_last_epoch(task, config.epochs)
    scaler = accelerator.scaler
    scale = None if scaler is None else scaler.state_dict()
    try:
        with seeded(config.seed):
            trainer = Trainer(copied, config)
            set_training_mode(trainer.network, config.freeze_bn)
            yield trainer
    finally:
        if scaler is not None:
            scaler.load_state_dict(scale)


def as_in_last_epoch(task: Task, epochs: int) -> nn.Module:
    """A copy of a task's model with what the last epoch freezes; the model itself is not frozen."""
    trained = [parameter.requires_grad for parameter in task.model.parameters()]
    task.prepare_epoch(epochs - 1)
    model = copy.deepcopy(task.model)
    for parameter, before in zip(task.model.parameters(), trained, strict=True):
        parameter.requires_grad_(before)
    return model


def _test_learning_rates(trainer: Trainer) -> LearningRateTest:
    config, plan = trainer.config, trainer.plan
    rising: Any = Rising(trainer.optimizer, 10 * max(config.min_lr, 1e-7), plan.lr / config.lr)
    trainer.scheduler = rising
    losses, steps = _losses(trainer), len(rising.rates)
    if trainer.accelerator.is_main_process:
        logger.info("testing learning rates: up to %d steps of %d images", steps, plan.global_batch_size)
        if (own := config.epochs * plan.steps_per_epoch) < steps:
            logger.warning("the learning rate test may take longer than the run, which has %d steps", own)
        losses = progress(losses, "testing learning rates", steps)
    return run_test(rising.rates, losses)


def _losses(trainer: Trainer) -> Iterator[float]:
    """Train without end, epoch after epoch; the loss of each step, over all processes."""
    batches = chain.from_iterable(trainer.task.batches(trainer.plan, epoch, 0) for epoch in count())
    while True:
        metrics = trainer.train_step(batches)
        loss = metrics.means[metrics.names.index("loss")]
        yield float(trainer.accelerator.reduce(loss, reduction="mean"))
        trainer.step_in_epoch += 1


def _find_batch_size(config: TrainConfig, task: Task, smallest: int) -> None:
    """Halve batch_size until two optimizer steps fit memory; the first makes the optimizer's state."""

    def halve() -> int:
        size = config.batch_size // 2
        if size < smallest:
            raise ValueError(
                f"not even a batch_size of {config.batch_size} fits memory: take smaller images, a smaller "
                "model, --precision bf16 or --grad-checkpointing"
            )
        return size

    def fits(batch_size: int) -> None:
        config.batch_size = batch_size
        plan = plan_batches(config, task.samples, 1, task.pairs, task.min_batch)
        alone = replace(config, global_batch_size=plan.micro_batch)  # accumulation takes no more memory
        try:
            with _trial(alone, task) as trainer:
                losses = _losses(trainer)
                next(losses), next(losses)
        except torch.OutOfMemoryError as error:
            raise RuntimeError("CUDA out of memory.") from error  # accelerate goes by the text

    find_executable_batch_size(fits, config.batch_size, halve)()
