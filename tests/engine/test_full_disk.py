"""A disk that fills up, on a small tmpfs where the test may mount one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from support.tiny import atconv, tiny_options

MiB = 1 << 20


def test_a_checkpoint_that_does_not_fit_leaves_the_older_one(small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(2 * MiB)
    first = save_checkpoint(folder, 1, {"weights": torch.ones(MiB // 4)})
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, 2, {"weights": torch.ones(MiB // 2)})
    assert [p.name for p in folder.iterdir()] == ["step-1"]
    assert load_checkpoint(first)["weights"].sum() == MiB // 4
    save_checkpoint(folder, 3, {"weights": torch.zeros(1)})
    assert [p.name for p in folder.iterdir()] == ["step-3"]


def test_a_run_whose_disk_fills_stops_in_one_line_and_resumes_with_more_space(
    small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    options = tiny_options(epochs=2, checkpoint_steps=4)
    disk = small_disk(int(1.25 * MiB))  # the model and one checkpoint, not two
    run = disk / "run"
    ended = atconv("train", "digits", *options, f"--out={run}")
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert "No space left" in ended.err
    assert "complete checkpoints are untouched" in ended.err
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert [p.name for p in (run / "checkpoints").iterdir()] == [newest.name]
    assert load_checkpoint(newest)["step_in_epoch"] == 4

    small_disk(16 * MiB)
    assert atconv("train", "--resume", run).code == 0
    elsewhere = tmp_path / "elsewhere"
    assert atconv("train", "digits", *options, f"--out={elsewhere}").code == 0
    assert (run / "model.safetensors").read_bytes() == (elsewhere / "model.safetensors").read_bytes()


@pytest.mark.parametrize("size", [4096, 12288, 65536])
def test_a_disk_too_small_for_anything_stops_in_one_line(
    small_disk: Callable[[int], Path], size: int
) -> None:
    ended = atconv("train", "digits", *tiny_options(), f"--out={small_disk(size) / 'run'}")
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert "No space left" in ended.err
