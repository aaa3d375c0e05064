"""On an accelerator the loop looks at the metrics of several steps at once: no step waits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from atconv.engine import trainer as module
from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint
from atconv.engine.trainer import Callback, Trainer
from atconv.tasks import train
from atconv.tasks.classification.task import ClassificationTask
from support.tiny import read_rows, reset_accelerate, tiny_config


class StepMetrics(Callback):
    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.seen[trainer.step] = metrics["loss"]


def trained(run: Path, **changes: Any) -> StepMetrics:
    reset_accelerate()
    callback = StepMetrics()
    train(tiny_config(epochs=2, ema_decay=0.9, checkpoint_steps=6, **changes), run, callbacks=[callback])
    return callback


def rows(run: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(run / "metrics.csv")]


@pytest.fixture
def four_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "steps_between_metrics", lambda device: 4)


def test_a_cpu_looks_after_every_step_and_an_accelerator_does_not() -> None:
    assert module.steps_between_metrics(torch.device("cpu")) == 1
    assert module.steps_between_metrics(torch.device("cuda")) > 1


@pytest.mark.slow
def test_runs_end_the_same_however_many_steps_are_looked_at_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = trained(tmp_path / "each")
    monkeypatch.setattr(module, "steps_between_metrics", lambda device: 4)
    several = trained(tmp_path / "several")
    # Before checkpoints (steps 6, 12 and 18) and at the ends of epochs (10 and 20) too.
    assert list(several.seen) == [4, 6, 10, 12, 16, 18, 20]
    assert several.seen.items() <= each.seen.items()
    assert list(each.seen) == list(range(1, 21))
    assert rows(tmp_path / "several") == rows(tmp_path / "each")
    one, other = (
        load_checkpoint(latest_checkpoint(tmp_path / name / "checkpoints")) for name in ("each", "several")
    )
    assert all(torch.equal(one["model"][name], tensor) for name, tensor in other["model"].items())


@pytest.mark.usefixtures("four_at_once")
def test_the_step_whose_loss_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, calls = ClassificationTask.loss, iter(range(100))

    def spoiled(*args: Any) -> Any:
        value, means = loss(*args)
        return value * (float("nan") if next(calls) == 8 else 1.0), means

    monkeypatch.setattr(ClassificationTask, "loss", spoiled)
    with pytest.raises(FloatingPointError, match=r"nan at step 8 \(epoch 1\).*step-6"):
        trained(tmp_path / "run")
    state = load_checkpoint(latest_checkpoint(tmp_path / "run" / "checkpoints"))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["model"].values())
