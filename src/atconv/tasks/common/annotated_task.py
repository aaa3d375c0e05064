"""What both dense tasks tell the shared loop in the same way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from atconv.data.annotated import AnnotatedSplit, CheckImages, save_or_check_split, train_val_test_split
from atconv.data.loaders import EpochBatches, SeededItems
from atconv.engine.curves import Panel, draw_curves
from atconv.engine.progress import make_table
from atconv.engine.run import Run
from atconv.engine.trainer import Task, Trainer
from atconv.io import save_tensors, write_json
from atconv.tasks.common.annotated_config import DenseConfig, classifier_weights

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["DenseTask", "check_batch_size", "open_sides", "save_evaluation", "starting_weights"]

S = TypeVar("S", bound=AnnotatedSplit)
E = TypeVar("E", bound="DataclassInstance")


class DenseTask(Task):
    """Training on annotated pictures by index."""

    unit: str
    """metric that picks the best epoch, in percent"""

    def __init__(
        self,
        config: DenseConfig,
        run: Run,
        accelerator: Accelerator,
        model: nn.Module,
        sides: Mapping[str, AnnotatedSplit],
    ) -> None:
        self.config, self.run, self.accelerator, self.model = config, run, accelerator, model
        self.sides, self.samples = sides, len(sides["train"])

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
    def judge(self, side: str, title: str, console: Console) -> Any:
        """Evaluate the kept model on a side, print tables and draw its pictures.

        Returns:
            the figures, a dataclass.
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
        side = "test" if "test" in self.sides else "val"
        note = "" if side == "test" else " (no test side: these images picked the best epoch)"
        found = {"split": side, **asdict(self.judge(side, f"{side} side{note}", console))}
        write_json(self.run.path / "metrics.json", {"best_epoch": best["epoch"], **found})
        pictures = ", ".join(sorted(p.name for p in self.run.path.glob("*.png")))
        console.print(
            f"everything is in {self.run.path}: model.safetensors, metrics.csv, {pictures}", soft_wrap=True
        )


def open_sides(
    config: DenseConfig, run: Run, accelerator: Accelerator, read: Callable[[CheckImages], Mapping[str, S]]
) -> dict[str, S]:
    """Training, validation and other sides, kept in split.json.

    Args:
        read: how image files are checked → the sides of DATA.
    """
    # The main process checks the files while the others wait.
    with accelerator.main_process_first():
        how: CheckImages = config.check_images if accelerator.is_main_process else "none"
        sides = train_val_test_split(read(how), config.val_fraction, config.seed)
        if accelerator.is_main_process:
            save_or_check_split(run.split, sides)
    return sides


def starting_weights(config: DenseConfig, fresh: bool, console: Console) -> dict[str, Tensor] | None:
    """Weights of the classifier that a new run's backbone starts from."""
    if config.weights is None or not fresh:
        return None
    found = classifier_weights(config.weights, config.model, config.model_args, config.in_chans)
    console.print(f"the backbone, {config.model}, starts from {config.weights}", soft_wrap=True)
    return found


def check_batch_size(batch_size: int) -> None:
    """Raise ValueError where it is no number of images."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def save_evaluation(
    run: str | Path,
    data: str,
    side: str,
    report: Callable[[str, Path], E],
    console: Console,
) -> tuple[E, Path]:
    """Evaluate a run on a side of DATA, and write to RUN/evaluation/.

    Args:
        report: the table's title and a folder → the figures, a dataclass; prints tables and draws pictures.

    Returns:
        the figures, and the folder.
    """
    folder = Path(run) / "evaluation" / f"{Path(data).resolve().name}-{side}"
    folder.mkdir(parents=True, exist_ok=True)
    found = report(f"{run} on {data}, {side} side", folder)
    write_json(folder / "metrics.json", {"split": side, **asdict(found)})
    console.print(f"written to {folder}: metrics.json, per_class.csv, predictions.png", soft_wrap=True)
    return found, folder
