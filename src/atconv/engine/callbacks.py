"""What a run shows, writes and stops on: everything about training that is not the loop.

A callback reads the trainer and never writes into it. It keeps no state of its own that a resumed run
would miss: what it writes follows from the history and the files that are there.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections.abc import Mapping
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

from atconv.engine.options import did_you_mean
from atconv.engine.progress import Heartbeat
from atconv.engine.tables import speed_text
from atconv.engine.trainer import Callback, Trainer
from atconv.io import write_rows

__all__ = [
    "BestModel",
    "CsvLogger",
    "EarlyStopping",
    "EpochPlots",
    "FileWriter",
    "ProgressBar",
    "TrackerLogger",
    "check_callbacks",
    "default_callbacks",
]

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Stops after `patience` epochs without a better score, counted from where a run was extended."""

    def __init__(self, patience: int, extended_at: int = 0) -> None:
        self.patience, self.extended_at = patience, extended_at

    def stops(self, trainer: Trainer) -> bool:
        history = trainer.history
        since = max(history.improved + 1, self.extended_at)
        return bool(history.rows) and len(history.rows) - since >= self.patience

    def on_fit_end(self, trainer: Trainer) -> None:
        if trainer.epoch < trainer.config.epochs and self.stops(trainer):
            logger.info(
                "stopped after epoch %d: none was better than epoch %d for %d epochs (equal scores do "
                "not count); epoch %s is kept. To train longer: --resume %s --epochs %d",
                trainer.epoch,
                trainer.history.improved + 1,
                self.patience,
                trainer.history.kept,
                trainer.run.path,
                trainer.config.epochs,
            )


class TrackerLogger(Callback):
    """Sends each epoch's metrics to accelerate's tracker."""

    def on_fit_start(self, trainer: Trainer) -> None:
        trainer.accelerator.init_trackers("tracking")

    def on_epoch_end(self, trainer: Trainer, row: Mapping[str, Any]) -> None:
        metrics = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        trainer.accelerator.log(metrics, step=trainer.step)


class FileWriter(Callback):
    """Writes files at the end of each epoch, and again after a resume."""

    def write(self, trainer: Trainer) -> None:
        """Write the files; the same again where they are there."""
        raise NotImplementedError

    def on_epoch_end(self, trainer: Trainer, row: Mapping[str, Any]) -> None:
        self.write(trainer)

    def on_resume(self, trainer: Trainer) -> None:
        self.write(trainer)


class BestModel(FileWriter):
    """Keeps the weights of the best epoch."""

    def write(self, trainer: Trainer) -> None:
        if trainer.history.usable and trainer.history.best == trainer.epoch - 1:
            trainer.task.save_model(trainer.ema_model)


class EpochPlots(FileWriter):
    """What the task plots of each epoch's model."""

    def write(self, trainer: Trainer) -> None:
        trainer.task.plot_epoch(trainer.ema_model, trainer.epoch)


class CsvLogger(FileWriter):
    """metrics.csv: one row an epoch."""

    def write(self, trainer: Trainer) -> None:
        write_rows(trainer.run.path / "metrics.csv", trainer.history.rows)


class ProgressBar(Callback):
    """Bars with live metrics on a terminal, and one line an epoch in the log; elsewhere also a line within
    an epoch, every `heartbeat` seconds."""

    def __init__(self, heartbeat: float = 60.0) -> None:
        self.heartbeat = Heartbeat(heartbeat)
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
        if self.bars.disable and self.heartbeat.due():
            plan, epochs = trainer.plan, trainer.config.epochs
            steps = epochs * plan.steps_per_epoch - trainer.step
            left = timedelta(seconds=round(steps * plan.global_batch_size / speed))
            logger.info(
                "epoch %3d/%d  step %d/%d  %s  %s  %s left",
                *(trainer.epoch + 1, epochs, trainer.step_in_epoch, plan.steps_per_epoch),
                *(text, speed_text(speed), left),
            )

    def on_epoch_end(self, trainer: Trainer, row: Mapping[str, Any]) -> None:
        self.bars.update(self.epochs, completed=trainer.epoch)
        self.heartbeat.restart()
        history, mark = trainer.history, ""
        if not math.isfinite(row.get("val_loss", 0.0)):
            mark = "  * not finite, never kept"
        elif history.monitor is not None and history.best == trainer.epoch - 1:
            mark = "  * best" if history.improved == history.best else "  * equal to the best"
        logger.info(epoch_line(row, trainer.config.epochs, mark))

    def on_fit_end(self, trainer: Trainer) -> None:
        self.bars.stop()


def epoch_line(row: Mapping[str, Any], epochs: int, mark: str = "") -> str:
    """One line of text for a row of the history."""
    hidden = ("epoch", "step", "images_per_second", "seconds")
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in hidden)
    return f"epoch {row['epoch']:>3}/{epochs}  {metrics}  {speed_text(row['images_per_second'])}{mark}"


def default_callbacks(
    patience: int | None, tracker: bool, main_process: bool, extended_at: int = 0
) -> list[Callback]:
    """The callbacks of every run: all processes track and stop, the main one shows and writes files.

    Args:
        extended_at: the epoch that a run was extended at, from which patience counts.
    """
    callbacks: list[Callback] = [EarlyStopping(patience, extended_at)] if patience is not None else []
    callbacks += [TrackerLogger()] if tracker else []
    if main_process:
        callbacks += [BestModel(), CsvLogger(), ProgressBar(), EpochPlots()]
    return callbacks


def check_callbacks(callbacks: Any) -> None:
    """Raise TypeError unless they are a list of instances of `Callback`, with its hooks, as it has them."""
    listed = isinstance(callbacks, (list, tuple))
    wrong = [each for each in callbacks if not isinstance(each, Callback)] if listed else [callbacks]
    if wrong:
        cls = wrong[0] if isinstance(wrong[0], type) else type(wrong[0])
        raise TypeError(
            "callbacks must be a list of instances of subclasses of atconv.engine.trainer.Callback, such as "
            f"[PrintLoss()], got {'the class' if cls is wrong[0] else 'a'} {cls.__name__}"
        )
    hooks = {name: hook for name, hook in vars(Callback).items() if not name.startswith("_")}
    for callback in callbacks:
        cls = type(callback)
        for name in dir(cls):
            if name.startswith("on_") and name not in hooks:
                known = f"there are {', '.join(hooks)}{did_you_mean(name, hooks)}"
                raise TypeError(f"{cls.__name__}.{name} is never called: {known}")
        for name, hook in hooks.items():
            _, *passed = inspect.signature(hook).parameters
            try:
                inspect.signature(getattr(callback, name)).bind(*passed)
            except TypeError as error:
                expected = f"{name}(self, {', '.join(passed)})"
                raise TypeError(f"{cls.__name__}.{name} must be {expected}: {error}") from None
