"""What a run shows, writes and stops on: everything about training that is not the loop.

A callback reads the trainer and never writes into it. It keeps no state of its own that a resumed run
would miss: what it writes follows from the history and the files that are there.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from atconv.engine.trainer import Callback, Trainer
from atconv.io import read_rows, write_rows
from atconv.modules import inhibition_strength

__all__ = [
    "BestModel",
    "CsvLogger",
    "EarlyStopping",
    "FileWriter",
    "InhibitionLogger",
    "ProgressBar",
    "TrackerLogger",
    "default_callbacks",
    "inhibition_rows",
]

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Stops after `patience` epochs without a better score."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def stops(self, trainer: Trainer) -> bool:
        history = trainer.history
        return bool(history.rows) and len(history.rows) - 1 - history.improved >= self.patience

    def on_fit_end(self, trainer: Trainer) -> None:
        if trainer.epoch < trainer.config.epochs and self.stops(trainer):
            logger.info(
                "stopped after epoch %d: none was better than epoch %d for %d epochs (equal scores do "
                "not count). To train longer, start a run with --checkpoint %s, or with a larger --patience",
                trainer.epoch,
                trainer.history.improved + 1,
                self.patience,
                trainer.run.path,
            )


class TrackerLogger(Callback):
    """Sends each epoch's metrics to accelerate's tracker."""

    def on_fit_start(self, trainer: Trainer) -> None:
        trainer.accelerator.init_trackers("tracking")

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        metrics = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        trainer.accelerator.log(metrics, step=trainer.step)


class FileWriter(Callback):
    """Writes files at the end of each epoch, and again after a resume."""

    def write(self, trainer: Trainer) -> None:
        """Write the files; the same again where they are there."""
        raise NotImplementedError

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        self.write(trainer)

    def on_resume(self, trainer: Trainer) -> None:
        self.write(trainer)


class BestModel(FileWriter):
    """Keeps the weights of the best epoch."""

    def write(self, trainer: Trainer) -> None:
        if trainer.history.best == trainer.epoch - 1:
            trainer.task.save_model(trainer.ema_model)


class CsvLogger(FileWriter):
    """metrics.csv: one row an epoch."""

    def write(self, trainer: Trainer) -> None:
        write_rows(trainer.run.path / "metrics.csv", trainer.history.rows)


class InhibitionLogger(FileWriter):
    """inhibition.csv: λ of every ATConv mixer by epoch."""

    def write(self, trainer: Trainer) -> None:
        path = trainer.run.path / "inhibition.csv"
        before = [row for row in read_rows(path) if int(row["epoch"]) < trainer.epoch]
        write_rows(path, before + inhibition_rows(trainer.ema_model, trainer.epoch))


class ProgressBar(Callback):
    """Bars with live metrics on a terminal, and one line an epoch in the log; elsewhere also a line within
    an epoch, every `heartbeat` seconds."""

    def __init__(self, heartbeat: float = 60.0) -> None:
        self.heartbeat, self.last_line = heartbeat, time.monotonic()
        console = Console(width=None if sys.stdout.isatty() else 200)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            transient=True,
            disable=not sys.stdout.isatty(),  # FORCE_COLOR, as notebooks set it, makes no terminal
        )
        self.epochs = self.bars.add_task("epochs", metrics="")
        self.steps = self.bars.add_task("steps", metrics="")

    def on_fit_start(self, trainer: Trainer) -> None:
        self.bars.update(self.epochs, total=trainer.config.epochs, completed=trainer.epoch)
        self.bars.start()

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        shown = dict(metrics)
        speed = shown.pop("images_per_second")
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.bars.update(
            self.steps,
            total=trainer.plan.steps_per_epoch,
            completed=trainer.step_in_epoch,
            metrics=f"{text}  {speed_text(speed)}",
        )
        if self.bars.disable and time.monotonic() - self.last_line >= self.heartbeat:
            self.last_line = time.monotonic()
            plan, epochs = trainer.plan, trainer.config.epochs
            steps = epochs * plan.steps_per_epoch - trainer.step
            left = timedelta(seconds=round(steps * plan.global_batch_size / speed))
            logger.info(
                "epoch %3d/%d  step %d/%d  %s  %s  %s left",
                *(trainer.epoch + 1, epochs, trainer.step_in_epoch, plan.steps_per_epoch),
                *(text, speed_text(speed), left),
            )

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        self.bars.update(self.epochs, completed=trainer.epoch)
        self.last_line = time.monotonic()
        history, mark = trainer.history, ""
        if history.monitor is not None and history.best == trainer.epoch - 1:
            mark = "  * best" if history.improved == history.best else "  * equal to the best"
        logger.info(epoch_line(row, trainer.config.epochs, mark))

    def on_fit_end(self, trainer: Trainer) -> None:
        self.bars.stop()


def speed_text(images_per_second: float) -> str:
    """Images a second, or where that is less than one, seconds an image."""
    if images_per_second < 1:
        return f"{1 / images_per_second:.1f} s an image"
    return f"{images_per_second:.0f} images/s"


def epoch_line(row: dict[str, Any], epochs: int, mark: str = "") -> str:
    """One line of text for a row of the history."""
    hidden = ("epoch", "step", "images_per_second", "seconds")
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in hidden)
    return f"epoch {row['epoch']:>3}/{epochs}  {metrics}  {speed_text(row['images_per_second'])}{mark}"


def inhibition_rows(model: nn.Module, epoch: int) -> list[dict[str, Any]]:
    """λ of every ATConv mixer: mean, min and max over channels, and each channel's in thousandths."""
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


def default_callbacks(
    model: nn.Module, patience: int | None, tracker: bool, main_process: bool
) -> list[Callback]:
    """The callbacks of every run: all processes track and stop, the main one shows and writes files."""
    callbacks: list[Callback] = [EarlyStopping(patience)] if patience is not None else []
    callbacks += [TrackerLogger()] if tracker else []
    if main_process:
        callbacks += [BestModel(), CsvLogger()]
        callbacks += [InhibitionLogger()] if inhibition_strength(model) else []
        callbacks += [ProgressBar()]
    return callbacks
