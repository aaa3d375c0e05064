"""The training loop that every task shares.

A task says what a batch, a loss and an evaluation are; the loop does the rest: accumulation, autocast,
clipping, schedule, EMA, checkpoints, resume, progress. Reads top to bottom: `Task`, `fit`, one epoch,
one step, state.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from timm.layers import convert_sync_batchnorm
from timm.models import model_parameters
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from atconv.engine.batch_plan import BatchPlan
from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from atconv.engine.config import LoopConfig
from atconv.engine.progress import TrainingBars
from atconv.engine.rng import derive_seed
from atconv.engine.run import Run
from atconv.engine.sharding import WholeWeights, load_model, load_optimizer, shard, whole
from atconv.io import write_rows
from atconv.modules import inhibition_strength

__all__ = ["Task", "Trainer", "inhibition_rows", "make_optimizer"]


class Task(ABC):
    """What the loop needs to know of a task."""

    model: nn.Module
    samples: int
    """training samples in an epoch"""
    plan: BatchPlan
    """set before the first batch is asked for"""
    pairs: bool = False
    """passes need an even number of samples"""
    streams: bool = False
    """data comes as a stream that cannot be entered in the middle: resume restarts its epoch"""

    @property
    def parts(self) -> Sequence[nn.Module]:
        """Parts of the model that a sharded run gathers one after the other."""
        return list(self.model.children())

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """This process's passes of an epoch, from the `start`-th on."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of one pass, and other means to show (scalars). `seed` is for random mixing."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a model on the validation data. Every process calls it and gets the same."""

    @abstractmethod
    def score(self, metrics: dict[str, float]) -> float | None:
        """What picks the best epoch, higher is better. Of equals the later epoch is taken: it has annealed
        longer. None: the last epoch is the one to keep."""

    @abstractmethod
    def save_best(self, model: nn.Module, epoch: int) -> None:
        """Write the weights of the best epoch so far, atomically. Only the main process calls it."""

    @abstractmethod
    def save_model_config(self) -> None:
        """Write what is needed to open the model, before training. Only the main process calls it."""

    @abstractmethod
    def report(self, trainer: Trainer, console: Console) -> None:
        """After the last epoch: figures and pictures, metrics.json last. Only the main process calls it."""


class Trainer:
    """Trains a task in a run's folder, from its newest checkpoint if there is one.

    Args:
        task: what to train.
        config: the loop's options.
        plan: batches, from `plan_batches`.
        run: the folder that checkpoints and metrics go to.
        accelerator: from `make_accelerator`.
        console: where progress shows.

    Raises:
        FloatingPointError: in `fit`, when the loss is not finite.
    """

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        plan: BatchPlan,
        run: Run,
        accelerator: Accelerator,
        console: Console,
    ) -> None:
        self.task, self.config, self.plan, self.run = task, config, plan, run
        self.accelerator, self.console = accelerator, console
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            task.model = convert_sync_batchnorm(task.model)  # timm's: keeps fused activations
        task.model.to(accelerator.device)
        self.ema = (
            ModelEmaV3(task.model, decay=config.ema_decay, use_warmup=config.ema_warmup)
            if config.ema_decay
            else None
        )
        if config.shard:
            shard(task.model, task.parts, accelerator)
        # Built before DDP or compile add prefixes to names that decay and layer groups match on.
        optimizer = make_optimizer(task.model, config, plan.lr)
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
            task.model.compile()
        # A sharded model reduces its gradients itself.
        self.model = task.model if config.shard else accelerator.prepare(task.model)
        self.optimizer = accelerator.prepare(optimizer)
        self.epoch = 0
        self.step_in_epoch = 0
        self.best = -math.inf
        self.improved_epoch = -1
        self.kept_epoch = -1  # index of the epoch whose weights are the best model
        self.history: list[dict[str, Any]] = []
        self.inhibition: list[dict[str, Any]] = []
        self._sums: dict[str, float] = {}
        self._resume()

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self.epoch * self.plan.steps_per_epoch + self.step_in_epoch

    @property
    def finished(self) -> bool:
        """All epochs are done, or patience has run out."""
        patience = self.config.patience
        impatient = patience is not None and self.epoch - 1 - self.improved_epoch >= patience
        return self.epoch >= self.config.epochs or impatient

    @property
    def averaged(self) -> nn.Module:
        """The model to evaluate and keep: the EMA if there is one."""
        return self.task.model if self.ema is None else self.ema.module

    def fit(self) -> None:
        """Train to the last epoch, or until patience runs out."""
        bars = TrainingBars(self.console, self.config.epochs, self.epoch)
        with bars.shown():
            while not self.finished:
                started = time.perf_counter()
                images = self._train_epoch(bars)
                self._close_epoch(bars, images, time.perf_counter() - started)
        self.accelerator.wait_for_everyone()

    def _train_epoch(self, bars: TrainingBars) -> int:
        """Train what is left of the current epoch; returns the images seen."""
        self._set_mode()
        first = self.step_in_epoch
        bars.start_epoch(self.plan.steps_per_epoch, first)
        passes = self.task.batches(self.epoch, first * self.plan.accumulate)
        started, images = time.perf_counter(), 0
        for _ in range(first, self.plan.steps_per_epoch):
            figures = self._train_step(passes)
            for name, value in figures.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self.step_in_epoch += 1
            images += self.plan.global_batch_size
            rate = images / (time.perf_counter() - started)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            bars.step(f"{shown}  {rate:.0f} images/s")
            every = self.config.checkpoint_steps
            if every and self.step % every == 0 and self.step_in_epoch < self.plan.steps_per_epoch:
                self._save_checkpoint()
        return images

    def _train_step(self, passes: Iterator[Any]) -> dict[str, float]:
        """One optimizer step over `accumulate` passes; returns the means over the whole batch."""
        self.scheduler.step_update(self.step)
        totals: dict[str, Tensor] = {}
        for i in range(self.plan.accumulate):
            batch = next(passes)
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
        figures = dict(zip(totals, means_over_all.tolist(), strict=True))
        if not math.isfinite(figures["loss"]):
            raise FloatingPointError(
                f"the loss is {figures['loss']} at step {self.step} (epoch {self.epoch + 1}), learning rate "
                f"{self._lr():.3g}. Lower lr, lengthen warmup_epochs or set clip_grad. "
                f"Last checkpoint: {latest_checkpoint(self.run.checkpoints) or 'none yet'}"
            )
        if self.config.clip_grad is not None:
            self.accelerator.unscale_gradients()
            # AGC leaves the classifier alone, as its authors do.
            clipped = model_parameters(self.task.model, exclude_head=self.config.clip_mode == "agc")
            dispatch_clip_grad(clipped, self.config.clip_grad, self.config.clip_mode)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            trained: Any = WholeWeights(self.task.model) if self.config.shard else self.task.model
            self.ema.update(trained, step=self.step + 1)
        return figures

    def _close_epoch(self, bars: TrainingBars, images: int, seconds: float) -> None:
        """Evaluate, make the epoch final with a checkpoint, then write the best model and the metrics."""
        metrics = self.task.evaluate(self.averaged)
        row: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step, "lr": self._lr()}
        row |= {f"train_{name}": total / self.plan.steps_per_epoch for name, total in self._sums.items()}
        row |= metrics
        row |= {"images_per_second": images / seconds, "seconds": seconds}
        self.history.append(row)
        self.inhibition.extend(inhibition_rows(self.averaged, self.epoch + 1))
        self.accelerator.log({k: v for k, v in row.items() if k not in ("epoch", "step")}, step=self.step)
        score = self.task.score(metrics)
        better = score is None or score >= self.best
        if better:
            self.kept_epoch = self.epoch
        if score is None or score > self.best:
            self.best, self.improved_epoch = score or 0.0, self.epoch
        self.epoch, self.step_in_epoch, self._sums = self.epoch + 1, 0, {}
        self._save_checkpoint()
        self._publish()
        bars.end_epoch(_epoch_line(row, self.config.epochs, better and score is not None))

    def _publish(self) -> None:
        """Write what follows from the checkpoint at an epoch's end. A resumed run writes it again, for the
        kill that came between the two."""
        if not self.accelerator.is_main_process:
            return
        if self.kept_epoch == self.epoch - 1:
            self.task.save_best(self.averaged, self.epoch)
        write_rows(self.run.path / "metrics.csv", self.history)
        write_rows(self.run.path / "inhibition.csv", self.inhibition)

    def _set_mode(self) -> None:
        self.task.model.train()
        for module in self.task.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = module.weight is not None and not module.weight.requires_grad
                if self.config.freeze_bn or frozen:
                    module.eval()

    def _lr(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    def _save_checkpoint(self) -> None:
        model, optimizer = whole(self.task.model.state_dict()), whole(self.optimizer.state_dict())
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
            "best": self.best,
            "improved_epoch": self.improved_epoch,
            "kept_epoch": self.kept_epoch,
            "sums": self._sums,
            "history": self.history,
            "inhibition": self.inhibition,
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
        load_model(self.task.model, state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step_in_epoch, self._sums = state["epoch"], state["step_in_epoch"], state["sums"]
        self.best, self.improved_epoch = state["best"], state["improved_epoch"]
        self.kept_epoch = state["kept_epoch"]
        self.history, self.inhibition = state["history"], state["inhibition"]
        if self.step_in_epoch == 0 and self.epoch:
            self._publish()
        if self.task.streams and self.epoch < self.config.epochs:
            self.console.print(
                f"a stream cannot be entered in the middle: epoch {self.epoch + 1} starts from its beginning"
            )


def make_optimizer(model: nn.Module, config: LoopConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer of a recipe, with its weight decay and layer decay."""
    info = get_optimizer_info(config.optimizer)
    adam: dict[str, Any] = {"betas": config.betas} if info.has_betas and info.num_betas == 2 else {}
    adam |= {"eps": config.eps} if info.has_eps else {}
    # One kernel a weight: four times as fast on a CPU. Not behind a loss scaler, which leaves out steps, nor
    # for sharded weights.
    fused = info.opt_class in (torch.optim.Adam, torch.optim.AdamW)
    adam |= {"fused": True} if fused and config.precision != "fp16" and not config.shard else {}
    return create_optimizer_v2(
        model,
        opt=config.optimizer,
        lr=lr,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        **adam,
    )


def inhibition_rows(model: nn.Module, epoch: int) -> list[dict[str, Any]]:
    """λ of every ATConv mixer: mean, least and greatest over channels, and each channel's in thousandths."""
    return [
        {
            "epoch": epoch,
            "layer": name,
            "mean": float(strength.mean()),
            "min": float(strength.min()),
            "max": float(strength.max()),
            "channels": " ".join(str(round(1000 * value)) for value in strength.tolist()),
        }
        for name, strength in inhibition_strength(model).items()
    ]


def _epoch_line(row: dict[str, Any], epochs: int, better: bool) -> str:
    skipped = ("epoch", "step", "images_per_second", "seconds")
    figures = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in skipped)
    mark = "  * best" if better else ""
    return f"epoch {row['epoch']:>3}/{epochs}  {figures}  {row['images_per_second']:.0f} images/s{mark}"
