"""The registry of tasks: which task a run is of, and commands that are given a run of another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import atconv_command
from atconv.engine.config import TrainConfig
from atconv.engine.recipes import write_config
from atconv.engine.run import Run
from atconv.tasks import TASKS, get_task, load, task_of
from atconv.tasks.classification.objective import open_teacher
from atconv.tasks.generation.commands import sample_run
from atconv.tasks.generation.features import RunFeatures
from support.tiny import atconv, image_folder, tiny_config, trained_run


def started_run(folder: Path, task: str) -> Run:
    """A run that has only its configuration."""
    run = Run.create(folder)
    write_config(get_task(task).config(data="somewhere"), task, run)
    return run


@pytest.mark.parametrize("task", TASKS)
def test_a_run_is_of_the_task_whose_options_it_has(tmp_path: Path, task: str) -> None:
    assert task_of(started_run(tmp_path / "run", task)).name == task


@pytest.mark.parametrize(
    ("file", "content", "task"),
    [
        ("config.json", {"architecture": "attnet_xxs", "label_names": ["a", "b"]}, "classification"),
        ("config.json", {"task": "detection"}, "detection"),
        ("config.json", {"_model_class": "UperNet", "_atconv": {"task": "segmentation"}}, "segmentation"),
        ("model_index.json", {"_class_name": "SiTPipeline"}, "generation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_its_configuration_a_run_is_of_its_models_task(
    tmp_path: Path, file: str, content: dict[str, object], task: str
) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    assert task_of(Run.open(tmp_path)).name == task


@pytest.mark.parametrize("content", ["{", "[]", '{"task": "flying"}'])
def test_a_model_that_names_no_task_is_a_value_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged: "):
        task_of(Run.open(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]", "epochs: 3", "null"])
def test_a_damaged_configuration_is_a_value_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        task_of(Run.open(tmp_path))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_names_itself_its_recipes_and_its_options(task: str) -> None:
    spec = get_task(task)
    assert spec.name == task
    assert spec.default_recipe in spec.recipe_names()
    assert issubclass(spec.config, TrainConfig)
    names = {field.name for field in fields(spec.config)}
    for recipe in spec.recipe_names():
        assert set(yaml.safe_load(spec.recipe_path(recipe).read_text())) <= names, recipe
    assert spec.predictor_class().task == task


COMMANDS = {"classification": "", "detection": "detect", "segmentation": "segment", "generation": "generate"}


@pytest.mark.parametrize("tool", ["evaluate", "predict", "train"])
@pytest.mark.parametrize("task", ["detection", "segmentation", "generation"])
def test_a_command_for_classifiers_names_the_command_that_fits(tmp_path: Path, task: str, tool: str) -> None:
    run = started_run(tmp_path / "run", task).path
    (tmp_path / "image.png").write_text("text")
    arguments = {
        "evaluate": [run, "somewhere"],
        "predict": [run, tmp_path / "image.png"],
        "train": ["--resume", run],
    }
    ended = atconv(tool, *arguments[tool])
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert f"{run} is a {task} run, not a classification run: use atconv {COMMANDS[task]}" in ended.err
    command = ended.err.split("use atconv ")[1].split()
    tools = atconv_command.TOOLS[command[0]]
    assert command[1:2] == [tool] if tool in tools else " ".join(command[1:]) == f"({', '.join(tools)})"
    assert {path.name for path in run.iterdir()} == {"config.yaml"}


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_command_of_another_task_names_the_command_for_classifiers(task: str) -> None:
    ended = atconv(COMMANDS[task], "evaluate", trained_run(), "digits")
    assert ended.code == 2
    assert f"is a classification run, not a {task} run: use atconv evaluate\n" in ended.err


@pytest.mark.parametrize("command", ["export", "analyze"])
@pytest.mark.parametrize("task", ["detection", "segmentation", "generation"])
def test_a_run_without_a_model_is_neither_exported_nor_analyzed(
    tmp_path: Path, task: str, command: str
) -> None:
    run = started_run(tmp_path / "run", task).path
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    ended = atconv(command, run, *([tmp_path / "image.png"] if command == "analyze" else []))
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert str(run) in ended.err


def test_the_front_door_lists_the_commands_that_there_are() -> None:
    from atconv.cli import _fills

    grouped = {f"{name} {tool}" for name, tools in atconv_command.TOOLS.items() for tool in tools}
    assert set(_fills()) == (set(atconv_command.COMMANDS) - set(atconv_command.TOOLS)) | grouped


@pytest.mark.parametrize(
    "use",
    [
        sample_run,
        lambda path: tiny_config(checkpoint=str(path)).source_run(),
        lambda path: open_teacher(tiny_config(distill="soft", teacher=str(path))),
        lambda path: RunFeatures(path, torch.device("cpu")),
    ],
    ids=["sampling", "checkpoint", "teacher", "features"],
)
def test_python_too_says_what_is_given_in_place_of_a_run(use: Callable[[Path], Any], tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", {"ant": 2, "bee": 2})
    with pytest.raises(ValueError, match="images is not a run: it is recognized as images"):
        use(images)


def wrong_runs(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files and folders that are no run, and what should be said of each."""
    images = image_folder(folder / "images", {"ant": 2, "bee": 2})
    (folder / "labels.csv").write_text("image,label\n")
    (folder / "model.pth").write_bytes(b"weights")
    yolo = folder / "yolo"
    image_folder(yolo, {"images": 1})
    (yolo / "labels").mkdir()
    (yolo / "labels" / "0.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    runs = folder / "runs"
    started_run(runs / "first", "classification")
    inside = trained_run() / "checkpoints" / "step-20"
    return {
        "images": (images, f"or train one on it: atconv train {images}"),
        "image": (images / "ant" / "0.png", "is recognized as one image"),
        "table": (folder / "labels.csv", "is recognized as a table"),
        "weights": (folder / "model.pth", "is recognized as a file of weights"),
        "yolo": (yolo, f"YOLO's format (images and labels); give .*: atconv detect train {yolo}"),
        "runs": (runs, f"it holds runs: give one of them, such as {runs / 'first'}"),
        "inside": (inside, f"it lies in the run {trained_run()}: give that folder"),
        "file": (
            trained_run() / "model.safetensors",
            f"it lies in the run {trained_run()}: give that folder",
        ),
    }


@pytest.mark.parametrize("kind", ["images", "image", "table", "weights", "yolo", "runs", "inside", "file"])
@pytest.mark.parametrize(
    "command", ["evaluate", "detect predict", "export", "analyze", "generate sample", "train --resume"]
)
def test_what_is_given_in_place_of_a_run_is_recognized(tmp_path: Path, kind: str, command: str) -> None:
    path, message = wrong_runs(tmp_path)[kind]
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    images = [tmp_path / "image.png"] if command in ("detect predict", "analyze") else []
    ended = atconv(*command.split(), path, *images)
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert f"{path} is not a run: it " in ended.err
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), ended.err), ended.err
    with pytest.raises(ValueError, match="is not a run"):
        load(path)
