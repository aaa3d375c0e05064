"""Which tasks there are, of which one a run is, and how its model is opened.

A new task is a folder here with a `SPEC` (see `TaskSpec`), its name in `TASKS`, and a line for
`atconv --help` in `atconv_command`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from atconv.engine.reading import read_json
from atconv.engine.recipes import read_options
from atconv.engine.run import Run
from atconv.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from atconv.engine.predictor import Predictor

__all__ = ["TASKS", "get_task", "load", "open_run", "task_for", "task_of", "task_of_config"]

TASKS = ("classification", "detection", "segmentation", "generation")


def get_task(name: str) -> TaskSpec:
    """A task by name."""
    spec: TaskSpec = importlib.import_module(f"atconv.tasks.{name}").SPEC
    return spec


def task_of(run: Run) -> TaskSpec:
    """The task of a run: by its config.yaml, or by the files of its model where that is not there.

    Raises:
        ValueError: it is a run of no task.
    """
    if run.config.is_file():
        options = read_options(run)
        for spec in map(get_task, TASKS):
            if spec.owns(options):
                return spec
        wrong = f"task is {options['task']!r}" if "task" in options else "it names no task"
        raise ValueError(f"{run.config} is damaged: {wrong}; there are {', '.join(TASKS)}")
    for spec in map(get_task, TASKS):
        if spec.model_file and (run.path / spec.model_file).is_file():
            return spec
    named = read_json(run.model_config, {"task": Literal[TASKS] | None}, inside="_atconv").get("task")
    return get_task(named or "classification")


def task_for(annotation: str) -> TaskSpec:
    """The task that learns from such annotations: labels, boxes or masks."""
    return next(spec for spec in map(get_task, TASKS) if spec.annotation == annotation)


def open_run(run: str | Path) -> Run:
    """The folder of a run that was started.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is something else; the message says what.
    """
    path = Path(run)
    if run == "":
        raise ValueError("the name of the run's folder is empty")
    try:
        opened = Run.open(path)
    except (FileNotFoundError, ValueError) as error:
        if not path.exists():
            raise
        raise ValueError(f"{path} is not a run: {_instead_of_a_run(path)}") from error
    opened.check_files()
    return opened


def _instead_of_a_run(path: Path) -> str:
    """What a file or folder is that is given where a run is needed, and what to do."""
    from atconv.data.formats import recognize

    for folder in path.absolute().parents:
        if (folder / "config.yaml").is_file() and (folder / "split.json").is_file():
            return f"it lies in the run {folder}: give that folder"
    runs = sorted(file.parent for file in path.glob("*/config.yaml"))
    if runs:
        return f"it holds runs: give one of them, such as {runs[0]}"
    found = recognize(path)
    if found is None:
        return "it has neither config.yaml nor config.json"
    text = f"it is recognized as {found.name}; give the folder that a run was trained in"
    if found.annotation is None or found.advice:
        return text
    command = f"atconv {task_for(found.annotation).command}".strip()
    return f"{text}, or train one on it: {command} train {path}"


def load(run: str | Path) -> Predictor[Any, Any]:
    """Open the best model of a run of any task.

    >>> predictor = atconv.load("runs/mine")
    >>> predictor("cat.jpg")
    >>> predictor.evaluate().to_dict()

    Args:
        run: the run's folder.

    Returns:
        the model in eval mode on the CPU with its transform, classes and configuration; see `Predictor`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is not a run, no epoch of it has finished, or its weights are damaged.
    """
    folder = open_run(run)
    return task_of(folder).predictor_class().open(folder)


def task_of_config(config: Any) -> TaskSpec:
    specs = [get_task(name) for name in TASKS]
    for spec in specs:
        if isinstance(config, spec.config):
            return spec
    names = ", ".join(spec.config.__name__ for spec in specs)
    raise TypeError(f"train takes a configuration ({names}), got a {type(config).__name__}")
