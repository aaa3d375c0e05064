"""What the registry knows of a task."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atconv.engine.recipes import read_config, read_recipe
from atconv.engine.run import Run
from atconv.extras import name_missing_extra

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atconv.engine.predictor import Predictor
    from atconv.engine.task import Task

__all__ = ["Publication", "TaskSpec"]


@dataclass(frozen=True)
class Publication:
    """What leaves with a run that is published, and what its model card says of any run of the task."""

    pipeline_tag: str = "other"
    """Hugging Face's name of the task"""
    library: str = "atconv"
    """Hugging Face's name of the library that opens it"""
    files: tuple[str, ...] = ("config.json", "model.safetensors")
    """globs of the model's files"""
    plots: Mapping[str, str] = field(default_factory=lambda: {"curves.png": "Learning curves"})
    """titles of plots that show no image of the data, by file"""
    image_plots: Mapping[str, str] = field(default_factory=dict)
    """titles of plots that show some"""
    metrics: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """the main ones in metrics.json: Hugging Face's name, and the unit"""
    intervals: str = "Wilson intervals"
    """how those of the metrics are made"""
    call: str = 'results = predictor("image.jpg")'
    """a line of Python that uses the `predictor`"""
    libraries: tuple[str, ...] = ()
    """lines of Python that open "{name}" in other libraries; "{mode}" is what PIL calls its images"""
    limits: tuple[str, ...] = ()
    """what to know before using it"""


@dataclass(frozen=True)
class TaskSpec:
    """One task: everything that commands and runs need of it.

    Its package is atconv.tasks.NAME. There, `task.make_task` makes what the trainer trains, and
    `predictor.NAMEPredictor` opens a run. Both are imported when they are needed: `--help` stays quick.
    """

    name: str
    command: str
    """`atconv COMMAND train`; empty for `atconv train`"""
    config: type[Any]
    """a dataclass, a subclass of TrainConfig"""
    data: str
    """what DATA is, for people"""
    inherit_config: Callable[[Any, Collection[str]], Any]
    """(configuration, options chosen by the user) → the configuration with what comes along with the weights
    that it starts from"""
    annotation: str = ""
    """what of its images it learns from: labels, boxes or masks, where data with these call for it"""
    panel: str = "DrawnPanel"
    """the class of `atconv.app.panels` that shows its runs on the web page"""
    default_recipe: str = "small"
    model_file: str = ""
    """a file that only its models have; empty where config.json names the task"""
    tools: tuple[str, ...] = ("train", "evaluate", "predict")
    """its commands"""
    writes: tuple[str, ...] = ("inhibition.csv",)
    """globs of files in its runs, besides those of every run: what `--overwrite` sets aside"""
    evaluation_writes: tuple[str, ...] = ()
    """files of its evaluations, which stand in a run too"""
    publication: Publication = Publication()
    """what `atconv publish` takes"""

    def recipe_names(self) -> list[str]:
        """Recipes that ship with the task, selectable by name."""
        folder = resources.files(f"atconv.tasks.{self.name}") / "recipes"
        return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())

    def recipe_path(self, name: str) -> Path:
        """A YAML file, or that of a recipe of the task by name. Raises ValueError where it is neither."""
        if Path(name).is_file():
            return Path(name)
        names = self.recipe_names()
        if name not in names:
            raise ValueError(f"no recipe {name!r}: give a YAML file, or one of {', '.join(names)}")
        return Path(str(resources.files(f"atconv.tasks.{self.name}") / "recipes" / f"{name}.yaml"))

    def read_recipe(self, name: str) -> dict[str, Any]:
        """The options in a recipe, by its name or file. Raises ValueError where they do not fit."""
        return read_recipe(self.recipe_path(name), self.config, self.name)

    def make_config(self, recipe: str, **changes: Any) -> Any:
        """The configuration of a recipe, by its name or file, with changes.

        >>> atconv.tasks.get_task("detection").make_config("small", data="street/", max_size=64)

        Raises:
            TypeError, ValueError: an option that there is not, or a value that it does not take.
        """
        return self.config.from_recipe(self.read_recipe(recipe), **changes)

    def read_config(self, run: Run) -> Any:
        """The configuration of a run of this task. Raises ValueError where it is not one."""
        return read_config(run, self.config, self.name)

    @name_missing_extra()
    def make_task(self, config: Any, run: Run, accelerator: Accelerator) -> Task:
        """What the trainer trains in a run."""
        module = importlib.import_module(f"atconv.tasks.{self.name}.task")
        task: Task = module.make_task(config, run, accelerator)
        return task

    @name_missing_extra()
    def predictor_class(self) -> type[Predictor[Any, Any]]:
        """The class that opens a run's trained model."""
        module = importlib.import_module(f"atconv.tasks.{self.name}.predictor")
        kind: type[Predictor[Any, Any]] = getattr(module, f"{self.name.capitalize()}Predictor")
        return kind

    def owns(self, options: Mapping[str, Any]) -> bool:
        """Whether a run's options are of this task: by its name, or by theirs where it is missing.

        Options that came or went since the run was made do not matter where the task is named.
        """
        if "task" in options:
            return bool(options["task"] == self.name)
        return set(options) == {field.name for field in fields(self.config)}
