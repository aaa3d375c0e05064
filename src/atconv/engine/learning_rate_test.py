"""A learning rate from a range test: the loss while the learning rate rises from step to step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atconv.plots import plt, save

__all__ = ["STEPS", "LearningRateTest", "Rising", "run_test"]

STEPS = 100
_HIGHEST = 10.0
_SMOOTHING = 0.9  # of the loss, as an average over some ten steps
_DIVERGED = 4.0  # times the lowest loss so far, as in fastai
_FEW = 10  # first steps, at learning rates too low to learn
_FALLEN = 0.999  # of the lowest loss in these


class Rising:
    """In place of the schedule: a learning rate that rises exponentially over `STEPS`.

    Args:
        lowest: learning rate of the first step.
        factor: from learning rates for a global batch of base_batch_size to those of a step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, lowest: float, factor: float) -> None:
        self.optimizer, self.factor = optimizer, factor
        self.rates = np.geomspace(lowest, _HIGHEST, STEPS).tolist()

    def step_update(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[step] * self.factor * group.get("lr_scale", 1.0)


@dataclass(frozen=True)
class LearningRateTest:
    """The smoothed loss at each learning rate, up to where it diverged."""

    rates: Sequence[float]
    losses: Sequence[float]

    @property
    def best(self) -> int:
        """Index of the lowest loss."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)

    @property
    def suggestion(self) -> float | None:
        """A tenth of the learning rate at which the loss was lowest: there it is about to rise, and a run is
        longer than the test. None where the loss did not fall."""
        fell = self.losses[self.best] < _FALLEN * min(self.losses[:_FEW])
        return float(f"{self.rates[self.best] / 10:.2g}") if fell else None

    def rows(self) -> list[dict[str, Any]]:
        """One for each step."""
        return [{"lr": lr, "smoothed_loss": x} for lr, x in zip(self.rates, self.losses, strict=True)]

    def describe(self, lr: float) -> str:
        """What was found in place of `lr`, for people."""
        text = f"learning rate test, {len(self.rates)} steps from {self.rates[0]:.2g} to {self.rates[-1]:.2g}"
        if self.suggestion is None:
            return f"{text}: the loss fell at none of them, so lr stays {lr:.3g}"
        lowest = f"lowest smoothed loss, {self.losses[self.best]:.4g}, at {self.rates[self.best]:.2g}"
        return f"{text}: {lowest}; a tenth of that is taken: lr {lr:.3g} → {self.suggestion:.3g}"

    def plot(self, lr: float, path: Path) -> None:
        """The loss by learning rate, with `lr` as it was given and the suggestion."""
        figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
        axis.plot(self.rates, self.losses)
        axis.axvline(lr, color="C7", linestyle="--", label=f"given, {lr:.3g}")
        if self.suggestion is not None:
            axis.axvline(self.suggestion, color="C1", label=f"suggested, {self.suggestion:.3g}")
            axis.plot(self.rates[self.best], self.losses[self.best], "o", color="C0", label="lowest loss")
        low, high = min(self.losses), max(self.losses[:_FEW])
        axis.set_ylim(low - 0.1 * (high - low or 1), high + 0.5 * (high - low or 1))
        axis.set(title="Learning rate test", xscale="log", xlabel="learning rate", ylabel="smoothed loss")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.legend()
        save(figure, path)


def run_test(rates: Sequence[float], losses: Iterable[float]) -> LearningRateTest:
    """Take losses until one is not finite, or the smoothed loss diverges (Smith, arXiv 1506.01186).

    Args:
        rates: the learning rate of each step, for a global batch of base_batch_size.
        losses: of the steps, which are made as they are asked for.

    Raises:
        FloatingPointError: the first one is not finite.
    """
    smoothed: list[float] = []
    average = 0.0
    for i, loss in enumerate(itertools.islice(losses, len(rates))):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        corrected = average / (1 - _SMOOTHING ** (i + 1))
        if not math.isfinite(corrected) or (smoothed and corrected > _DIVERGED * min(smoothed)):
            break
        smoothed.append(corrected)
    if not smoothed:
        raise FloatingPointError("the loss is not finite at the first step of the learning rate test")
    return LearningRateTest(rates[: len(smoothed)], smoothed)
