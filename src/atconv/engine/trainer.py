"""The training loop that every task shares.

A `Task` says what a batch, a loss and an evaluation are. The loop does the rest: accumulation, autocast,
clipping, schedule, EMA, checkpoints, resume. What people and files see of it is in `callbacks`.

Reads top to bottom: `Callback`, `Trainer.fit`, one epoch, one step, checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from timm.layers import convert_sync_batchnorm
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from atconv.engine.batch_plan import plan_batches
from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from atconv.engine.config import TrainConfig
from atconv.engine.distributed import (
    full_optimizer_state,
    full_state_dict,
    load_model,
    load_optimizer,
    shard,
)
from atconv.engine.history import History
from atconv.engine.optimizer import make_ema, make_optimizer, make_scheduler
from atconv.engine.rng import derive_seed
from atconv.engine.task import Task

__all__ = ["Callback", "StepMetrics", "Trainer", "set_training_mode"]

logger = logging.getLogger(__name__)

_ADVICE = "Lower lr, lengthen warmup_epochs or set clip_grad"


class Callback:
    """Called by the trainer, which it reads and never writes into. Override what is needed."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first step, also of a resumed run."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """After an optimizer step; `metrics` holds its means and the speed. On an accelerator after the last
        of every 16 steps, and of an epoch: metrics wait for the device, and it would wait for them."""

    def on_epoch_end(self, trainer: Trainer, row: Mapping[str, Any]) -> None:
        """After an epoch's evaluation and checkpoint; `row` is the last of the history, read-only."""

    def on_resume(self, trainer: Trainer) -> None:
        """After a resume from the end of an epoch: write again what a kill may have left out."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, or after an error."""

    def stops(self, trainer: Trainer) -> bool:
        """Whether to stop before the next epoch. All processes must answer alike."""
        return False


class Trainer:
    """Trains a task, from the newest checkpoint in its run's folder if there is one.

    Args:
        task: what to train, in which folder, on which devices.
        config: the loop's options.
        callbacks: what is shown, written and stopped.

    Raises:
        ValueError: too few samples for a batch, or the newest checkpoint is damaged or of other batches.
        FloatingPointError: in `fit`, when the loss is not finite.
    """

    def __init__(self, task: Task, config: TrainConfig, callbacks: Sequence[Callback] = ()) -> None:
        self.task, self.config, self.callbacks = task, config, callbacks
        self.run, self.accelerator = task.run, task.accelerator
        accelerator = self.accelerator
        self.plan = plan = plan_batches(
            config, task.samples, accelerator.num_processes, task.pairs, task.min_batch
        )
        network = task.model
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            network = convert_sync_batchnorm(network)  # timm's: keeps fused activations
        self.network = network.to(accelerator.device)
        """the model without wrappers"""
        self.ema = make_ema(network, config, plan.steps_per_epoch * config.epochs)
        if config.shard:
            shard(network, task.shards, accelerator)
        # Built before DDP or compile add prefixes to names that decay and layer groups match on.
        optimizer = make_optimizer(network, config, plan.lr)
        self.scheduler = make_scheduler(optimizer, config, plan.steps_per_epoch)
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
        if self.history.rows and not self.history.usable:
            raise FloatingPointError(
                f"the validation loss was not finite in any epoch, and no model is kept. {_ADVICE}"
            )
        return self.history

    def _train_epoch(self) -> None:
        """Train what is left of the current epoch, evaluate, and make the epoch final with a checkpoint."""
        self.task.prepare_epoch(self.epoch)
        set_training_mode(self.network, self.config.freeze_bn)
        first, started, images = self.step_in_epoch, time.perf_counter(), 0
        batches = self.task.batches(self.plan, self.epoch, first * self.plan.accumulate)
        pending: list[StepMetrics] = []
        for _ in range(first, self.plan.steps_per_epoch):
            pending.append(self.train_step(batches))
            self.step_in_epoch += 1
            last, every = self.step_in_epoch == self.plan.steps_per_epoch, self.config.checkpoint_steps
            saves = bool(every and self.step % every == 0 and not last)
            if not (last or saves or len(pending) == steps_between_metrics(self.accelerator.device)):
                continue
            metrics = self._add_up(pending)
            pending = []
            images = (self.step_in_epoch - first) * self.plan.global_batch_size
            seconds = time.perf_counter() - started
            for callback in self.callbacks:
                callback.on_step_end(self, metrics | {"images_per_second": images / seconds})
            if saves:
                self._save_checkpoint()
        seconds = time.perf_counter() - started
        values: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step, "lr": self.lr}
        values |= {f"train_{name}": total / self.plan.steps_per_epoch for name, total in self._sums.items()}
        values |= self.task.evaluate(self.ema_model)
        values |= {"images_per_second": images / seconds, "seconds": seconds}
        row = MappingProxyType(values)  # callbacks read it
        self.history.rows.append(row)
        self.epoch, self.step_in_epoch, self._sums = self.epoch + 1, 0, {}
        self._reject_broken_weights()
        self._save_checkpoint()
        for callback in self.callbacks:
            callback.on_epoch_end(self, row)

    def train_step(self, batches: Iterator[Any]) -> StepMetrics:
        """One optimizer step over `accumulate` micro-batches, for whose end nothing waits."""
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
        if self.config.clip_grad is not None:
            self.accelerator.unscale_gradients()
            # AGC leaves the classifier alone, as its authors do.
            clipped = model_parameters(self.network, exclude_head=self.config.clip_mode == "agc")
            dispatch_clip_grad(clipped, self.config.clip_grad, self.config.clip_mode)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            trained: Any = self.network
            if self.config.shard:  # the average reads full tensors, and of the model nothing else
                trained = SimpleNamespace(state_dict=partial(full_state_dict, self.network))
            self.ema.update(trained, step=self.step + 1)
        return StepMetrics(self.step, self.lr, tuple(totals), torch.stack(list(totals.values())))

    def _add_up(self, steps: Sequence[StepMetrics]) -> dict[str, float]:
        """Wait for the device and add the metrics of steps to those of the epoch. Returns the last ones.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        reduced = self.accelerator.reduce(torch.stack([each.means for each in steps]), reduction="mean")
        metrics: dict[str, float] = {}
        for each, values in zip(steps, reduced.tolist(), strict=True):
            metrics = dict(zip(each.names, values, strict=True))
            if not math.isfinite(metrics["loss"]):
                place = f"at step {each.step} (epoch {self.epoch + 1})"
                raise self._diverged(f"the loss is {metrics['loss']} {place}", each.lr)
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
        return metrics

    def _reject_broken_weights(self) -> None:
        """Raise FloatingPointError where the model can only say NaN from now on."""
        for name, weight in self.ema_model.named_parameters():
            if not weight.isfinite().all():
                raise self._diverged(
                    f"the weights of {name} are not finite after epoch {self.epoch}", self.lr
                )

    def _diverged(self, what: str, lr: float) -> FloatingPointError:
        last = latest_checkpoint(self.run.checkpoints) or "none yet"
        return FloatingPointError(f"{what}, learning rate {lr:.3g}. {_ADVICE}. Last checkpoint: {last}")

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
            "history": [dict(row) for row in self.history.rows],
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
        self.history.rows = [MappingProxyType(row) for row in state["history"]]


class StepMetrics(NamedTuple):
    """What a step leaves on the device."""

    step: int
    lr: float
    names: tuple[str, ...]
    means: Tensor
    """of this process, in the order of the names"""


def steps_between_metrics(device: torch.device) -> int:
    """After how many steps the host looks at their metrics, for which it waits until they have run."""
    return 1 if device.type == "cpu" else 16


def set_training_mode(model: nn.Module, freeze_bn: bool) -> None:
    """Training mode, in which BatchNorm keeps its statistics if asked, or where its weights are frozen."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            frozen = module.weight is not None and not module.weight.requires_grad
            if freeze_bn or frozen:
                module.eval()
