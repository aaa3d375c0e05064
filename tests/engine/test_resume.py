"""A run that is killed at any point and resumed ends as one that was never interrupted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint
from support.tiny import Finished, KillAt, atconv, read_rows, start_atconv, tiny_options

EPOCHS, STEPS_PER_EPOCH, CHECKPOINT_STEPS = 2, 10, 4

OPTIONS = tiny_options(
    epochs=EPOCHS,
    workers=1,
    checkpoint_steps=CHECKPOINT_STEPS,
    crop_scale=[0.5, 1.0],
    rotate=10,
    hflip=0.5,
    auto_augment="rand-m5-mstd0.5",
    erase_prob=0.3,
    mixup=0.4,
    cutmix=1.0,
    drop_path_rate=0.1,
    drop_rate=0.1,
    repeats=2,
    clip_grad=1.0,
    warmup_epochs=0.5,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    ended = atconv("train", "digits", *OPTIONS, f"--out={run}")
    assert ended.code == 0, ended.err
    return run


def killed(run: Path, kill_at: KillAt) -> None:
    ended = atconv("train", "digits", *OPTIONS, f"--out={run}", kill_at=kill_at)
    assert ended.code == -signal.SIGKILL, (ended.code, ended.err)


def resumed(run: Path) -> Finished:
    ended = atconv("train", "--resume", run)
    assert ended.code == 0, ended.err
    return ended


def table(run: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table, but for the speed of the machine."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(run / name)]


def assert_same_end(run: Path, expected: Path) -> None:
    last = f"checkpoints/step-{EPOCHS * STEPS_PER_EPOCH}"
    for name in ("model.safetensors", f"{last}/state.safetensors"):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    for name in ("metrics.csv", "inhibition.csv", "predictions.csv"):
        assert table(run, name) == table(expected, name), name
    assert [p.name for p in (run / "checkpoints").iterdir()] == [Path(last).name]
    assert not [p for p in run.rglob("*") if p.name.startswith(".writing")]


STEP = "torch.optim.AdamW.step"

POINTS = {
    "before the first step": KillAt(STEP),
    "before the first checkpoint": KillAt(STEP, nth=3),
    "in mid-epoch": KillAt(STEP, nth=7),
    "in mid-epoch of the second": KillAt(STEP, nth=STEPS_PER_EPOCH + 6),
    "before a checkpoint gets its name": KillAt("os.rename", "step-8"),
    "before the older checkpoint goes": KillAt("shutil.rmtree", "step-4"),
    "before the best weights get their name": KillAt("os.replace", "model.safetensors"),
    "between epochs, before their checkpoint": KillAt("os.replace", "metrics.csv"),
    "between epochs, after it": KillAt("shutil.rmtree", "step-8"),
}


@pytest.mark.parametrize("kill_at", POINTS.values(), ids=POINTS)
def test_a_killed_run_resumes_to_the_same_end(tmp_path: Path, uninterrupted: Path, kill_at: KillAt) -> None:
    killed(tmp_path / "run", kill_at)
    resumed(tmp_path / "run")
    assert_same_end(tmp_path / "run", uninterrupted)


def test_a_kill_from_outside_while_a_checkpoint_is_written(tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    process = start_atconv("train", "digits", *OPTIONS, f"--out={run}", output=tmp_path)
    while not list(run.glob("checkpoints/.writing-step-*")) and process.exitcode is None:
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed(run)
    assert_same_end(run, uninterrupted)


def test_half_of_a_checkpoint_is_ignored_and_goes(tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    killed(run, KillAt("os.rename", "step-8"))
    [unfinished] = run.glob("checkpoints/.writing-*")
    content = (unfinished / "state.safetensors").read_bytes()
    (unfinished / "state.safetensors").write_bytes(content[: len(content) // 2])
    (unfinished / "state.json").unlink()
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert newest.name == "step-4"
    resumed(run)
    assert_same_end(run, uninterrupted)


@pytest.mark.slow
def test_a_run_may_be_killed_more_than_once(tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    killed(run, KillAt(STEP, nth=6))
    for nth in (5, 9):
        ended = atconv("train", "--resume", run, kill_at=KillAt(STEP, nth=nth))
        assert ended.code == -signal.SIGKILL
    ended = resumed(run)
    assert "resuming at epoch 2" in ended.out
    assert_same_end(run, uninterrupted)


def test_resuming_a_finished_run_leaves_it_as_it_is(tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    ended = resumed(run)
    assert "is finished already" in ended.out
    assert f"epoch   {EPOCHS}/{EPOCHS}" not in ended.out
    assert_same_end(run, uninterrupted)


def test_a_damaged_checkpoint_stops_the_resume_in_one_line(tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    content = (newest / "state.safetensors").read_bytes()
    (newest / "state.safetensors").write_bytes(content[: len(content) // 2])
    ended = atconv("train", "--resume", run)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"{newest} is damaged" in ended.err


def test_resuming_with_other_batches_is_rejected(tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    config = run / "config.yaml"
    config.write_text(re.sub(r"(batch_size|base_batch_size): 32", r"\1: 16", config.read_text()))
    ended = atconv("train", "--resume", run)
    assert ended.code == 2
    assert re.search(r"10 steps an epoch of 32 images, this run has \d+ of 16", ended.err)


def test_the_checkpoint_holds_what_is_needed_to_resume(uninterrupted: Path) -> None:
    newest = latest_checkpoint(uninterrupted / "checkpoints")
    assert newest is not None
    state = load_checkpoint(newest)
    assert state["epoch"] == EPOCHS
    assert state["step_in_epoch"] == 0
    assert [row["epoch"] for row in state["history"]] == list(range(1, EPOCHS + 1))
    assert set(state["model"]) == set(state["ema"])


def test_two_commands_do_not_train_in_one_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start_atconv(
        "train", "digits", *tiny_options(epochs=500, checkpoint_steps=1), f"--out={run}", output=tmp_path
    )
    try:
        deadline = time.monotonic() + 60
        while latest_checkpoint(run / "checkpoints") is None and time.monotonic() < deadline:
            time.sleep(0.1)
        second = atconv("train", "--resume", run)
        assert second.code == 2
        assert "is being trained by another process" in second.err
        assert first.is_alive()
    finally:
        first.kill()
        first.join()
    assert load_checkpoint(latest_checkpoint(run / "checkpoints"))["epoch"] >= 0


def test_an_interrupt_says_how_to_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_atconv(
        "train", "digits", *tiny_options(epochs=500, checkpoint_steps=1), f"--out={run}", output=tmp_path
    )
    deadline = time.monotonic() + 60
    while latest_checkpoint(run / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert f"--resume {run}" in (tmp_path / "out").read_text()
