"""The learning rate and the batch size that are found before a run, on copies of its model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import yaml

from atconv.engine.config import TrainConfig
from atconv.engine.learning_rate_test import STEPS, run_test
from atconv.engine.tuning import as_in_last_epoch
from atconv.models.attnet import AttNet
from atconv.tasks import resume
from atconv.tasks.classification.unfreezing import Unfreezing
from support.tiny import TINY_ARGS, atconv, read_rows, reset_accelerate, tiny_options, train_tiny
from support.tiny_dense import detect, segment
from support.tiny_sit import train_tiny_sit


@contextmanager
def memory_for(images: int) -> Iterator[list[int]]:
    """A device that has no room to train on more images at a time; the batches that were tried."""
    tried, forward = [], AttNet.forward

    def limited(self: AttNet, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.device.type != "meta":
            tried.append(len(x))
            if len(x) > images:
                raise torch.OutOfMemoryError("no room")
        return forward(self, x)

    with mock.patch.object(AttNet, "forward", limited):
        yield tried


def options(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return content


def same(first: Path, second: Path) -> bool:
    """Whether two runs are the same bit for bit, and configured alike."""
    names = [str(path.relative_to(first)) for path in first.glob("checkpoints/*/state.safetensors")]
    return all(
        (first / name).read_bytes() == (second / name).read_bytes()
        for name in ("config.yaml", "model.safetensors", *names)
    )


def test_a_run_with_a_found_learning_rate_is_one_that_was_started_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "atconv"):
        found = train_tiny(tmp_path / "found", find_lr=True)
    lr, rows = options(found)["lr"], read_rows(found / "find_lr.csv")
    lowest = min(rows, key=lambda row: float(row["smoothed_loss"]))
    assert lr == pytest.approx(float(lowest["lr"]) / 10, rel=0.05)
    assert "testing learning rates: up to 100 steps of 32 images" in caplog.text
    assert "may take longer than the run, which has 10 steps" in caplog.text
    assert f"a tenth of that is taken: lr 0.001 → {lr:.3g}" in caplog.text
    assert (found / "find_lr.png").is_file()
    assert same(found, train_tiny(tmp_path / "started", lr=lr))


def test_what_the_last_epoch_trains_is_tried_on_a_copy() -> None:
    model = timm.create_model("attnet_xxs", **TINY_ARGS)
    task: Any = SimpleNamespace(model=model, prepare_epoch=Unfreezing(model, 1, 1).apply)
    copied = as_in_last_epoch(task, epochs=2)
    trained = [name for name, parameter in copied.named_parameters() if parameter.requires_grad]
    assert any(name.startswith("stages.3.") for name in trained)
    assert all(name.startswith(("stages.3.", "head.")) for name in trained)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_the_stage_that_trains_most_is_tested(tmp_path: Path) -> None:
    with mock.patch("atconv.engine.learning_rate_test.STEPS", 5):
        whole = train_tiny(tmp_path / "whole", epochs=2, find_lr=True)
        staged = train_tiny(tmp_path / "staged", epochs=2, head_epochs=1, find_lr=True)
    assert read_rows(staged / "find_lr.csv") == read_rows(whole / "find_lr.csv")


@pytest.mark.slow
def test_what_a_test_freezes_is_frozen_in_the_test_alone(tmp_path: Path) -> None:
    staged = {"epochs": 2, "head_epochs": 1, "unfreeze_epochs": 1}
    found = train_tiny(tmp_path / "found", find_lr=True, **staged)
    assert same(found, train_tiny(tmp_path / "started", lr=options(found)["lr"], **staged))


def test_a_run_with_a_found_batch_size_is_one_that_was_started_with_it(tmp_path: Path) -> None:
    with memory_for(10) as tried:
        found = train_tiny(tmp_path / "found", auto_find_batch_size=True)
        assert list(dict.fromkeys(tried)) == [32, 16, 8]
        assert (options(found)["batch_size"], options(found)["base_batch_size"]) == (8, 32)
        assert same(found, train_tiny(tmp_path / "started", batch_size=8))
        tried.clear()
        resume(found, epochs=2)
    assert set(tried) == {8}


def test_without_room_for_the_smallest_batch_one_line_says_so_and_no_run_is_left(tmp_path: Path) -> None:
    with memory_for(1):
        flags = tiny_options(mixup=0.2, batch_size=8)  # mixup takes pairs
        ended = atconv("train", "digits", f"--out={tmp_path / 'run'}", "--auto-find-batch-size", *flags)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "not even a batch_size of 2 fits memory: take smaller images" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "make",
    [
        detect,
        pytest.param(segment, marks=pytest.mark.slow),
        pytest.param(train_tiny_sit, marks=pytest.mark.slow),
    ],
    ids=["detection", "segmentation", "generation"],
)
def test_every_task_is_tuned(make: Callable[..., Path], tmp_path: Path) -> None:
    reset_accelerate()
    with mock.patch("atconv.engine.learning_rate_test.STEPS", 5):
        run = make(tmp_path / "run", epochs=1, find_lr=True, auto_find_batch_size=True)
    found = options(run)
    assert (found["find_lr"], found["auto_find_batch_size"]) == (False, False)
    assert read_rows(run / "find_lr.csv")


def test_several_shards_are_not_tuned() -> None:
    with pytest.raises(ValueError, match="find_lr and auto_find_batch_size try a whole model"):
        TrainConfig(shard=True, find_lr=True)


RATES = np.geomspace(1e-6, 10, STEPS).tolist()


def test_the_suggestion_is_a_tenth_of_where_the_loss_is_lowest() -> None:
    losses = [2 + abs(math.log10(rate / 1e-2)) for rate in RATES]  # a valley at 0.01
    found = run_test(RATES, losses)
    assert len(found.rates) == len(found.losses) == STEPS
    assert found.suggestion is not None
    assert 1e-3 <= found.suggestion <= 4e-3  # smoothing follows the loss by some steps of 18 % each
    assert f"lr 0.1 → {found.suggestion:.3g}" in found.describe(0.1)


@pytest.mark.parametrize("end", [math.nan, math.inf, 1e4])
def test_it_stops_where_the_loss_diverges(end: float) -> None:
    found = run_test(RATES, [2 - i / 100 for i in range(40)] + [end] * 60)
    assert (len(found.rates), found.best) == (40, 39)
    assert found.suggestion == pytest.approx(RATES[39] / 10, rel=0.05)


@pytest.mark.parametrize("losses", [[2 + i / 50 for i in range(STEPS)], [2.0, math.nan], [3.0] * STEPS])
def test_nothing_is_suggested_where_the_loss_does_not_fall(losses: list[float], tmp_path: Path) -> None:
    found = run_test(RATES, losses)
    assert found.suggestion is None
    assert "the loss fell at none of them, so lr stays 0.001" in found.describe(1e-3)
    found.plot(1e-3, tmp_path / "plot.png")


def test_a_loss_that_is_not_finite_from_the_start_raises() -> None:
    with pytest.raises(FloatingPointError, match="not finite at the first step"):
        run_test(RATES, [math.nan, 1.0])
