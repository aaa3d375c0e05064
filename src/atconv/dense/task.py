"""What both dense tasks tell the shared loop in the same way."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from atconv.datasets.folders import AnnotatedSide, hold_out, keep_split
from atconv.datasets.loader import EpochBatches, SeededItems
from atconv.dense.backbone import classifier_weights
from atconv.dense.config import DenseConfig
from atconv.runs import Run
from atconv.training.checkpoint import save_tensors, write_atomically
from atconv.training.curves import Panel, draw_curves
from atconv.training.loop import Task, Trainer
from atconv.training.progress import make_table

__all__ = ["DenseTask", "open_sides", "starting_weights", "write_json"]


Checking = Literal["decode", "header", "none"]
S = TypeVar("S", bound=AnnotatedSide)


class DenseTask(Task):
    """Training on annotated pictures by index."""

    unit: str
    """metric that picks the best epoch, in percent"""

    def __init__(
        self, config: DenseConfig, run: Run, accelerator: Accelerator, model: nn.Module, samples: int
    ) -> None:
        self.config, self.run, self.accelerator, self.model = config, run, accelerator, model
        self.samples = samples

    @abstractmethod
    def draw(self, position: int) -> tuple[Any, Any]:
        """A training picture and its target, augmented by what the generators say."""

    @staticmethod
    @abstractmethod
    def collate(examples: Sequence[tuple[Any, Any]]) -> Any:
        """A batch."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """config.json: what is needed to build the model."""

    @abstractmethod
    def judge(self, console: Console) -> dict[str, Any]:
        """Evaluate the kept model on the test side, or on validation where there is none; draw its pictures.

        Returns:
            what metrics.json holds of it.
        """

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        keys: Any = EpochBatches(
            self.samples, self.plan, self.config.seed, epoch, self.accelerator.process_index, start=start
        )
        loader = DataLoader(
            SeededItems(self.draw),
            batch_sampler=keys,
            num_workers=self.config.workers,
            collate_fn=self.collate,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        return iter(loader)

    def score(self, metrics: dict[str, float]) -> float:
        return metrics[f"val_{self.unit}"]

    def save_best(self, model: nn.Module, epoch: int) -> None:
        save_tensors(model.state_dict(), self.run.weights)

    def save_model_config(self) -> None:
        write_json(self.run.model_config, self.description())

    def report(self, trainer: Trainer, console: Console) -> None:
        """After the last epoch: curves, then the figures and pictures of the kept model."""
        best, column = trainer.history[trainer.kept_epoch], f"val_{self.unit}"
        panels = [
            Panel("Loss", "sum of all parts", {"train": "train_loss"}),
            Panel(f"Validation {self.unit}", "%", {self.unit: column}),
            Panel("Learning rate", "at the end of the epoch", {"learning rate": "lr"}),
        ]
        draw_curves(trainer.history, panels, self.run.path / "curves.png", (column, best))
        rows = [
            ("best epoch", f"{best['epoch']} of {len(trainer.history)}"),
            (f"validation {self.unit}", f"{best[column]:.2f} %"),
            ("parameters", f"{sum(p.numel() for p in self.model.parameters()):,}"),
            ("training time", f"{sum(row['seconds'] for row in trainer.history):.0f} s"),
        ]
        console.print(make_table(str(self.run.path), ("figure", "value"), rows))
        found = self.judge(console)
        write_json(self.run.path / "metrics.json", {"best_epoch": best["epoch"], **found})
        pictures = ", ".join(sorted(p.name for p in self.run.path.glob("*.png")))
        console.print(
            f"everything is in {self.run.path}: model.safetensors, metrics.csv, {pictures}", soft_wrap=True
        )


def open_sides(
    config: DenseConfig, run: Run, accelerator: Accelerator, read: Callable[[Checking], Mapping[str, S]]
) -> dict[str, S]:
    """Training, validation and other sides, kept in split.json.

    Args:
        read: how image files are checked → the sides of DATA.
    """
    # The main process checks the files while the others wait.
    with accelerator.main_process_first():
        how: Checking = config.check_images if accelerator.is_main_process else "none"
        sides = hold_out(read(how), config.val_fraction, config.seed)
        if accelerator.is_main_process:
            keep_split(run, sides)
    return sides


def starting_weights(config: DenseConfig, fresh: bool, console: Console) -> dict[str, Tensor] | None:
    """Weights of the classifier that a new run's backbone starts from."""
    if config.weights is None or not fresh:
        return None
    found = classifier_weights(config.weights, config.model, config.model_args, config.in_chans)
    console.print(f"the backbone, {config.model}, starts from {config.weights}", soft_wrap=True)
    return found


def write_json(path: Path, told: dict[str, Any]) -> None:
    """Write JSON in place of a file, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(told, indent=1) + "\n"))
