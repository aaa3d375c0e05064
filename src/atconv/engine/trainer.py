"""The training loop that every task shares.

A task says what a batch, a loss and an evaluation are. The loop does the rest: accumulation, autocast,
clipping, schedule, EMA, checkpoints, resume. What people and files see of it is in `callbacks`.

Reads top to bottom: `Task`, `History`, `Callback`, `Trainer.fit`, one epoch, one step, checkpoint, optimizer.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from timm.layers import convert_sync_batchnorm
from timm.models import model_parameters
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from atconv.engine.batch_plan import BatchPlan
from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from atconv.engine.config import TrainConfig
from atconv.engine.distributed import (
    full_optimizer_state,
    full_state_dict,
    load_model,
    load_optimizer,
    shard,
)
from atconv.engine.rng import derive_seed
from atconv.engine.run import Run

__all__ = ["Callback", "History", "Task", "Trainer", "make_optimizer"]

logger = logging.getLogger(__name__)


class Task(ABC):
    """What a run trains. The trainer asks it; neither writes into the other."""

    model: nn.Module
    samples: int
    """training samples in an epoch"""
    pairs: bool = False
    """micro-batches need an even number of samples"""
    min_batch: int = 1
    """samples that a micro-batch needs, of which batch norm learns"""
    streams: bool = False
    """data comes as a stream that cannot be entered in the middle: resume restarts its epoch"""
    monitor: str | None = None
    """metric of `evaluate` that picks the best epoch, higher is better; None keeps the last epoch"""

    @property
    def shards(self) -> Sequence[nn.Module]:
        """Parts of the model that a sharded run gathers one after the other."""
        return list(self.model.children())

    @abstractmethod
    def batches(self, plan: BatchPlan, epoch: int, start: int) -> Iterator[Any]:
        """This process's micro-batches of an epoch, from the `start`-th on."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a micro-batch on the device, and other means to show (scalars). `seed` is for random
        mixing."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a model on the validation split. Every process calls it and gets the same."""

    @abstractmethod
    def save_config(self) -> None:
        """Write what is needed to open the model, before training. Only the main process calls it."""

    @abstractmethod
    def save_model(self, model: nn.Module) -> None:
        """Write the weights of the best epoch so far, atomically. Only the main process calls it."""

    def callbacks(self) -> list[Callback]:
        """What this task does besides at the end of each epoch, in the main process."""
        return []

    @abstractmethod
    def report(self, history: History) -> None:
        """After the last epoch: metrics and plots, metrics.json last. Only the main process calls it."""


@dataclass
class History:
    """One row of metrics an epoch."""

    monitor: str | None
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> int:
        """Index of the epoch to keep. Of equals the last is taken: it has annealed longer."""
        scores = self._scores()
        return max(range(len(scores)), key=lambda i: (scores[i], i), default=-1)

    @property
    def improved(self) -> int:
        """Index of the last epoch that was better than all before it."""
        scores = self._scores()
        if self.monitor is None:
            return len(scores) - 1
        return max(range(len(scores)), key=lambda i: (scores[i], -i), default=-1)

    def _scores(self) -> list[float]:
        return [0.0 if self.monitor is None else row[self.monitor] for row in self.rows]


class Callback:
    """Called by the trainer, which it reads and never writes into. Override what is needed."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first step, also of a resumed run."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """After an optimizer step; `metrics` holds its means and the speed."""

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """After an epoch's evaluation and checkpoint; `row` is the last of the history."""

    def on_resume(self, trainer: Trainer) -> None:
        """After a resume from the end of an epoch: write again what a kill may have left out."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, or after an error."""

    def stops(self, trainer: Trainer) -> bool:
        """Whether to stop before the next epoch. All processes must answer alike."""
        return False


class Trainer:
    """Trains a task in a run's folder, from its newest checkpoint if there is one.

    Args:
        task: what to train.
        config: the loop's options.
        plan: batches, from `plan_batches`.
        run: the folder that checkpoints go to.
        accelerator: from `make_accelerator`.
        callbacks: what is shown, written and stopped.

    Raises:
        ValueError: the newest checkpoint is damaged, or of another batch plan.
        FloatingPointError: in `fit`, when the loss is not finite.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        plan: BatchPlan,
        run: Run,
        accelerator: Accelerator,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.task, self.config, self.plan, self.run = task, config, plan, run
        self.accelerator, self.callbacks = accelerator, callbacks
        network = task.model
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            network = convert_sync_batchnorm(network)  # timm's: keeps fused activations
        self.network = network.to(accelerator.device)
        """the model without wrappers"""
        self.ema: ModelEmaV3 | None = None
        if config.ema_decay:
            self.ema = ModelEmaV3(network, decay=config.ema_decay, use_warmup=config.ema_warmup)
            _warn_of_untrained_average(config, plan.steps_per_epoch * config.epochs)
        if config.shard:
            shard(network, task.shards, accelerator)
        # Built before DDP or compile add prefixes to names that decay and layer groups match on.
        optimizer = make_optimizer(network, config, plan.lr)
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.schedule,
            num_epochs=config.epochs,
            min_lr=config.min_lr,
            warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]  # fractions work: it counts updates
            warmup_lr=config.warmup_lr,
            step_on_epochs=False,
            updates_per_epoch=plan.steps_per_epoch,
        )
        if config.compile:
            network.compile()
        # A sharded model reduces its gradients itself.
        self.model = network if config.shard else accelerator.prepare(network)
        self.optimizer = accelerator.prepare(optimizer)
        self.epoch = 0
        self.step_in_epoch = 0
        self.history = History(task.monitor)
        self._sums: dict[str, float] = {}
        self._resume()

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self.epoch * self.plan.steps_per_epoch + self.step_in_epoch

    @property
    def finished(self) -> bool:
        """All epochs are done, or a callback asks to stop."""
        stopped = any(callback.stops(self) for callback in self.callbacks)
        return self.epoch >= self.config.epochs or stopped

    @property
    def ema_model(self) -> nn.Module:
        """The model to evaluate and keep: the EMA if there is one."""
        return self.network if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def fit(self) -> History:
        """Train to the last epoch, or until a callback asks to stop."""
        try:
            for callback in self.callbacks:
                callback.on_fit_start(self)
            if self.history.rows and self.step_in_epoch == 0:
                for callback in self.callbacks:  # the run may have ended between checkpoint and callbacks
                    callback.on_resume(self)
            while not self.finished:
                self._train_epoch()
        finally:
            for callback in self.callbacks:
                callback.on_fit_end(self)
        self.accelerator.wait_for_everyone()
        return self.history

    def _train_epoch(self) -> None:
        """Train what is left of the current epoch, evaluate, and make the epoch final with a checkpoint."""
        self._set_mode()
        first, started, images = self.step_in_epoch, time.perf_counter(), 0
        batches = self.task.batches(self.plan, self.epoch, first * self.plan.accumulate)
        for _ in range(first, self.plan.steps_per_epoch):
            metrics = self._train_step(batches)
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self.step_in_epoch += 1
            images = (self.step_in_epoch - first) * self.plan.global_batch_size
            seconds = time.perf_counter() - started
            for callback in self.callbacks:
                callback.on_step_end(self, metrics | {"images_per_second": images / seconds})
            every = self.config.checkpoint_steps
            if every and self.step % every == 0 and self.step_in_epoch < self.plan.steps_per_epoch:
                self._save_checkpoint()
        seconds = time.perf_counter() - started
        row: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step, "lr": self.lr}
        row |= {f"train_{name}": total / self.plan.steps_per_epoch for name, total in self._sums.items()}
        row |= self.task.evaluate(self.ema_model)
        row |= {"images_per_second": images / seconds, "seconds": seconds}
        self.history.rows.append(row)
        self.epoch, self.step_in_epoch, self._sums = self.epoch + 1, 0, {}
        self._save_checkpoint()
        for callback in self.callbacks:
            callback.on_epoch_end(self, row)

    def _train_step(self, batches: Iterator[Any]) -> dict[str, float]:
        """One optimizer step over `accumulate` micro-batches; returns the means over the global batch."""
        self.scheduler.step_update(self.step)
        totals: dict[str, Tensor] = {}
        for i in range(self.plan.accumulate):
            batch = send_to_device(next(batches), self.accelerator.device, non_blocking=True)
            seed = derive_seed("step", self.config.seed, self.step, i, self.accelerator.process_index)
            torch.manual_seed(seed)
            last = i == self.plan.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    loss, means = self.task.loss(self.model, batch, seed)
                self.accelerator.backward(loss / self.plan.accumulate)
            for name, value in {"loss": loss, **means}.items():
                totals[name] = totals.get(name, 0.0) + value.detach().float() / self.plan.accumulate
        means_over_all = self.accelerator.reduce(torch.stack(list(totals.values())), reduction="mean")
        metrics = dict(zip(totals, means_over_all.tolist(), strict=True))
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(
                f"the loss is {metrics['loss']} at step {self.step} (epoch {self.epoch + 1}), learning rate "
                f"{self.lr:.3g}. Lower lr, lengthen warmup_epochs or set clip_grad. "
                f"Last checkpoint: {latest_checkpoint(self.run.checkpoints) or 'none yet'}"
            )
        if self.config.clip_grad is not None:
            self.accelerator.unscale_gradients()
            # AGC leaves the classifier alone, as its authors do.
            clipped = model_parameters(self.network, exclude_head=self.config.clip_mode == "agc")
            dispatch_clip_grad(clipped, self.config.clip_grad, self.config.clip_mode)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            trained: Any = _Gathered(self.network) if self.config.shard else self.network
            self.ema.update(trained, step=self.step + 1)
        return metrics

    def _set_mode(self) -> None:
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = module.weight is not None and not module.weight.requires_grad
                if self.config.freeze_bn or frozen:
                    module.eval()

    def _save_checkpoint(self) -> None:
        model, optimizer = full_state_dict(self.network), full_optimizer_state(self.optimizer)
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "model": model,
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": optimizer,
            "scaler": None if scaler is None else scaler.state_dict(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "global_batch_size": self.plan.global_batch_size,
            "sums": self._sums,
            "history": self.history.rows,
        }
        save_checkpoint(self.run.checkpoints, self.step, state)

    def _resume(self) -> None:
        path = latest_checkpoint(self.run.checkpoints)
        if path is None:
            return
        state = load_checkpoint(path)
        planned = (self.plan.steps_per_epoch, self.plan.global_batch_size)
        if (state["steps_per_epoch"], state["global_batch_size"]) != planned:
            raise ValueError(
                f"{path} has {state['steps_per_epoch']} steps an epoch of {state['global_batch_size']} "
                f"images, this run has {planned[0]} of {planned[1]}: resume on the same data with as many "
                "processes as before"
            )
        load_model(self.network, state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step_in_epoch, self._sums = state["epoch"], state["step_in_epoch"], state["sums"]
        self.history.rows = state["history"]
        if self.task.streams and self.epoch < self.config.epochs:
            logger.info(
                "a stream cannot be entered in the middle: epoch %d starts from its beginning", self.epoch + 1
            )


def _warn_of_untrained_average(config: TrainConfig, steps: int) -> None:
    """Say where a run is too short for a moving average that starts long."""
    untrained = 0.0 if config.ema_warmup else config.ema_decay**steps
    if untrained > 0.01:
        logger.warning(
            "after all %d steps the moving average is still %.0f %% untrained weights: leave ema_warmup on, "
            "lower ema_decay, or train longer",
            steps,
            100 * untrained,
        )


class _Gathered:
    """What timm's EMA reads of a sharded model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        return full_state_dict(self.model)


def make_optimizer(model: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer of a recipe, with its weight decay and layer decay.

    timm exempts tensors of one dimension from weight decay, and the names that the model's
    `no_weight_decay` gives, or where it has none, those of its parts: the backbone of a detector.
    """
    info = get_optimizer_info(config.optimizer)
    adam: dict[str, Any] = {"betas": config.betas} if info.has_betas and info.num_betas == 2 else {}
    adam |= {"eps": config.eps} if info.has_eps else {}
    # One kernel a weight: four times as fast on a CPU. Not behind a loss scaler, which leaves out steps, nor
    # for sharded weights.
    fused = info.opt_class in (torch.optim.Adam, torch.optim.AdamW)
    adam |= {"fused": True} if fused and config.precision != "fp16" and not config.shard else {}
    # Models that name their exemptions themselves, and those without decay, are timm's to group.
    own = hasattr(model, "no_weight_decay") or not (config.weight_decay or config.layer_decay)
    return create_optimizer_v2(
        model,
        opt=config.optimizer,
        lr=lr,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        param_group_fn=None if own else partial(_param_groups, config=config),
        **adam,
    )


def _param_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """timm's groups of a model's parameters, with `no_weight_decay` of its parts."""
    decay, exempt = config.weight_decay, _no_weight_decay(model)
    if config.layer_decay is None:
        return param_groups_weight_decay(model, decay, no_weight_decay_list=exempt)
    return param_groups_layer_decay(model, decay, no_weight_decay_list=exempt, layer_decay=config.layer_decay)


def _no_weight_decay(model: nn.Module) -> set[str]:
    """Patterns of parameters that the model's parts exempt from weight decay, by their names in the model."""
    return {
        f"{name}.{pattern}"
        for name, part in model.named_modules()
        if name and callable(getattr(part, "no_weight_decay", None))
        for pattern in part.no_weight_decay()
    }
