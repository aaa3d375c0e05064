"""`train --overwrite`: starts again in the folder of a run, and touches nothing but what runs write."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from atconv.engine.run import Run
from atconv.tasks import task_of, train
from support.tiny import (
    KillAt,
    atconv,
    image_folder,
    reset_accelerate,
    tiny_config,
    tiny_options,
    trained_run,
)
from support.tiny_dense import detection_run, segmentation_run
from support.tiny_sit import generation_run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of a finished run, with files of its user."""
    shutil.copytree(trained_run(), tmp_path / "run")
    for name in ("notes.txt", "evaluation/mine.csv", "checkpoints/best/model.bin"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    return tmp_path / "run"


@pytest.mark.parametrize("made", [trained_run, generation_run, detection_run, segmentation_run])
def test_everything_that_a_run_writes_is_set_aside(tmp_path: Path, made: object) -> None:
    assert callable(made)
    shutil.copytree(made(), tmp_path / "run")
    before = contents(tmp_path / "run")
    spec = task_of(Run(tmp_path / "run"))
    Run(tmp_path / "run").set_aside(spec.writes, spec.evaluation_writes)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".overwritten"]
    assert contents(tmp_path / "run" / ".overwritten") == before
    Run(tmp_path / "run").bring_back()
    assert contents(tmp_path / "run") == before


def test_a_run_starts_again_next_to_the_users_files(run: Path) -> None:
    (run / "classes.png").touch()  # which this run does not write
    ended = atconv("train", "digits", *tiny_options(epochs=1), f"--out={run}", "--overwrite")
    assert ended.code == 0, ended.err
    assert len((run / "metrics.csv").read_text().splitlines()) == 2  # the earlier run had two epochs
    assert "classes.png" not in {path.name for path in run.iterdir()}
    assert {name for name, content in contents(run).items() if content == b"mine"} == {
        "notes.txt",
        "evaluation/mine.csv",
        "checkpoints/best/model.bin",
    }
    assert not (run / ".overwritten").exists()


@pytest.mark.parametrize("change", [{"model": "attnet_t9"}, {"data": "no/such"}, {"auto_augment": "nosuch"}])
def test_a_rejected_option_leaves_the_earlier_run(run: Path, change: dict[str, str]) -> None:
    before = contents(run)
    reset_accelerate()
    with pytest.raises(ValueError, match=r"attnet_t9|no/such|nosuch"):
        train(tiny_config(**change), run, overwrite=True)
    assert contents(run) == before


def test_what_a_killed_process_set_aside_comes_back(run: Path) -> None:
    before = contents(run)
    command = ("train", "digits", *tiny_options(epochs=1), f"--out={run}", "--overwrite")
    assert atconv(*command, kill_at=KillAt("atconv.tasks.training._prepare")).code == -9
    assert contents(run / ".overwritten").keys() >= {"model.safetensors", "config.yaml"}
    reset_accelerate()
    with pytest.raises(ValueError, match="nosuch"):
        train(tiny_config(auto_augment="nosuch"), run, overwrite=True)
    after = contents(run)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("config", ["task: classification\nlearning_rate: 3\n", "a: [", None])
def test_a_folder_of_something_else_is_never_touched(tmp_path: Path, config: str | None) -> None:
    image_folder(tmp_path / "mine", {"ant": 2})
    (tmp_path / "mine" / "model.safetensors").write_text("mine")
    if config is not None:
        (tmp_path / "mine" / "config.yaml").write_text(config)
    before = contents(tmp_path / "mine")
    ended = atconv("train", "digits", *tiny_options(), f"--out={tmp_path / 'mine'}", "--overwrite")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert str(tmp_path / "mine") in ended.err
    assert contents(tmp_path / "mine") == before


def test_overwriting_needs_the_name_of_the_folder() -> None:
    assert "name the folder with --out" in atconv("train", "digits", "--overwrite").err


def test_a_run_that_exists_names_both_ways_on(run: Path) -> None:
    ended = atconv("train", "digits", f"--out={run}")
    assert f"resume it with --resume {run}, or start it again with --out {run} --overwrite" in ended.err
    (run / "model.safetensors").unlink()
    ended = atconv("evaluate", run)
    assert f"resume it with --resume {run}, or start it again with --out {run} --overwrite" in ended.err
