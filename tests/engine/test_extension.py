"""A run that is trained for longer: its schedule, patience, and a kill in between."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from atconv.engine.callbacks import EarlyStopping
from atconv.engine.history import History
from atconv.tasks import resume
from support.tiny import KillAt, atconv, read_rows, train_tiny, trained_run

EPOCHS, STEPS = 4, 10


def extend(run: Path, *options: str, kill_at: KillAt | None = None) -> str:
    ended = atconv("train", "--resume", run, *options, kill_at=kill_at)
    assert ended.code == (0 if kill_at is None else -9), ended.err
    return ended.out


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of two epochs that was extended to four, and what that said."""
    run = shutil.copytree(trained_run(), tmp_path_factory.mktemp("extended") / "run")
    return run, extend(run, f"--epochs={EPOCHS}")


def test_a_finished_run_is_trained_for_longer(extended: tuple[Path, str]) -> None:
    run, _ = extended
    rows, before = read_rows(run / "metrics.csv"), read_rows(trained_run() / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[:2] == before
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == EPOCHS
    assert (run / "metrics.json").is_file()


def test_its_learning_rate_is_that_of_a_run_of_so_many_epochs(extended: tuple[Path, str]) -> None:
    run, said = extended
    lr = [1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * step / (EPOCHS * STEPS))) / 2 for step in range(40)]
    for row in read_rows(run / "metrics.csv")[2:]:
        assert float(row["lr"]) == pytest.approx(lr[int(row["step"]) - 1], rel=1e-6)
    assert "extended at epoch 2 to 4 epochs: the learning rate, " in said
    assert f"follows the cosine schedule of 4 epochs from here, with {lr[2 * STEPS]:.3g} next" in said


@pytest.mark.parametrize(
    "kill_at",
    [
        KillAt("torch.optim.AdamW.step", nth=5),
        KillAt("atconv.tasks.classification.task.report_run"),
    ],
    ids=["in its first epoch", "before the report"],
)
def test_a_killed_extension_continues_to_the_same_end(
    extended: tuple[Path, str], tmp_path: Path, kill_at: KillAt
) -> None:
    run = shutil.copytree(trained_run(), tmp_path / "run")
    extend(run, f"--epochs={EPOCHS}", kill_at=kill_at)
    extend(run)
    for name in ("model.safetensors", f"checkpoints/step-{EPOCHS * STEPS}/state.safetensors"):
        assert (run / name).read_bytes() == (extended[0] / name).read_bytes(), name
    assert (run / "metrics.json").is_file()


def test_a_run_that_patience_stopped_has_it_again(tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run", epochs=6, patience=1, lr=1e-12, min_lr=0.0, warmup_lr=0.0)
    assert len(read_rows(run / "metrics.csv")) == 2  # at such a rate, no epoch is better
    assert "is finished already" in extend(run)
    extend(run, "--epochs=7")
    assert len(read_rows(run / "metrics.csv")) == 3
    assert "is finished already" in extend(run)
    extend(run, "--patience=2")
    assert len(read_rows(run / "metrics.csv")) == 5


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_as_many_epochs_or_fewer_change_nothing(epochs: int, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run(), tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "log.txt"}
    ended = atconv("train", "--resume", run, f"--epochs={epochs}")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "epochs" in ended.err
    assert epochs == 0 or "2 epochs behind it: give --epochs 3 or more" in ended.err
    with pytest.raises(ValueError, match="epochs"):
        resume(run, epochs=epochs)
    assert {path: path.read_bytes() for path in before} == before


def test_an_extended_configuration_runs_again(extended: tuple[Path, str]) -> None:
    ended = atconv("train", f"--config={extended[0] / 'config.yaml'}", "--print-config")
    assert (ended.code, f"epochs: {EPOCHS}" in ended.out) == (0, True), ended.err


def test_damage_to_where_a_run_was_extended_is_named(tmp_path: Path) -> None:
    run = shutil.copytree(trained_run(), tmp_path / "run")
    with (run / "config.yaml").open("a") as file:
        file.write("extended_at: often\n")
    with pytest.raises(ValueError, match=r"extended_at in .*config\.yaml must be a whole number"):
        resume(run)


def test_patience_counts_from_where_a_run_was_extended() -> None:
    trainer: Any = SimpleNamespace(history=History("val_top1", [{"val_top1": x} for x in (5.0, 4.0, 4.0)]))
    assert [EarlyStopping(2, start).stops(trainer) for start in (0, 1, 2, 3)] == [True, True, False, False]
