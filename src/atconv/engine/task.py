"""What the training loop asks of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from atconv.engine.batch_plan import BatchPlan
from atconv.engine.history import History
from atconv.engine.run import Run

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Task"]


class Task(ABC):
    """What a run trains. The trainer asks it; neither writes into the other."""

    run: Run
    """the folder that checkpoints go to"""
    accelerator: Accelerator
    """from `make_accelerator`"""
    model: nn.Module
    samples: int
    """training samples in an epoch"""
    pairs: bool = False
    """micro-batches need an even number of samples"""
    min_batch: int = 1
    """samples that a micro-batch needs, of which batch norm learns"""
    monitor: str | None = None
    """metric of `evaluate` that picks the best epoch, higher is better; None keeps the last epoch"""

    @property
    def shards(self) -> Sequence[nn.Module]:
        """Parts of the model that a sharded run gathers one after the other."""
        return list(self.model.children())

    @abstractmethod
    def batches(self, plan: BatchPlan, epoch: int, start: int) -> Iterator[Any]:
        """This process's micro-batches of an epoch, from the `start`-th on."""

    def prepare_epoch(self, epoch: int) -> None:  # noqa: B027  (most tasks need nothing)
        """Before an epoch, counted from 0, or what a resumed run has left of it: freeze what stays."""

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

    def plot_epoch(self, model: nn.Module, epoch: int) -> None:  # noqa: B027  (most tasks plot at the end)
        """Plots of a model after an epoch, counted from 1. Only the main process calls it."""

    @abstractmethod
    def report(self, history: History) -> None:
        """After the last epoch: metrics and plots, metrics.json last. Only the main process calls it."""
