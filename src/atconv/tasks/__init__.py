"""The tasks, and what is the same for all of them: train, resume, load.

>>> from atconv.tasks import train
>>> from atconv.tasks.classification import ClassificationConfig
>>> run = train(ClassificationConfig(data="digits", model="attnet_xxs"), "runs/digits")

A new task is a folder here with a `SPEC` (see `TaskSpec`), its name in `TASKS`, and a line for
`atconv --help` in `atconv_command`.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from atconv.engine.reading import read_json
from atconv.engine.recipes import read_extended_at, read_options, write_config
from atconv.engine.run import Run, next_run_dir, run_lock, run_log
from atconv.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atconv.engine.predictor import Predictor
    from atconv.engine.trainer import Callback

__all__ = [
    "TASKS",
    "TaskSpec",
    "get_task",
    "load",
    "open_run",
    "resume",
    "task_for",
    "task_of",
    "train",
    "train_or_resume",
]

logger = logging.getLogger(__name__)

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
    if (run.path / "model_index.json").is_file():
        return get_task("generation")
    named = read_json(run.model_config, {"task": Literal[TASKS] | None}, inside="_atconv").get("task")
    return get_task(named or "classification")


def task_for(annotation: str) -> TaskSpec:
    """The task that learns from such annotations: labels, boxes or masks."""
    return get_task({"labels": "classification", "boxes": "detection", "masks": "segmentation"}[annotation])


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


def train(
    config: Any,
    run: str | Path | None = None,
    *,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    chosen: Collection[str] = (),
) -> Path:
    """Train from a configuration.

    Args:
        config: what to train on what, how; its class says which task.
        run: folder of the run; default: runs/DATA-MODEL, numbered where it exists.
        overwrite: start again in the folder of a run that was started. What that run has written is removed
            once the new one is ready for its first step; other files there stay.
        callbacks: your own, called in every process, besides those of every run.
        chosen: options that must not change where `checkpoint` names a run that brings its own.

    Returns:
        the run's folder, which `atconv.load` opens.

    Raises:
        TypeError: `config` is of no task, or `callbacks` are no callbacks.
        ValueError: an option, the data or the weights do not fit; nothing was trained, no folder is left.
        FloatingPointError: the loss is not finite; checkpoints so far are kept.
        OSError: a disk is full or read-only; the last complete checkpoint is kept.
    """
    from atconv.engine.callbacks import check_callbacks
    from atconv.engine.distributed import make_accelerator, release_accelerator

    check_callbacks(callbacks)
    spec = _task_of_config(config)
    config = replace(spec.inherit_config(config, chosen))  # a copy, which searches write into
    if overwrite and run is None:
        raise ValueError("overwrite starts a run again in its folder: name the folder with --out")
    if run == "":
        raise ValueError("the name of the run's folder is empty")
    path = Path(run) if run is not None else next_run_dir(config.data, config.model)
    if Path(os.path.realpath(config.data)) in Path(os.path.realpath(path)).parents:
        logger.warning(
            "the run's folder, %s, lies in DATA, where it is passed over; --out is for another", path
        )
    accelerator = make_accelerator(config, str(path))
    try:
        before: Collection[str] | None = None
        if accelerator.is_main_process:
            if overwrite and path.is_dir() and any(path.iterdir()):
                _set_aside(path)
            before = {child.name for child in path.iterdir()} if path.is_dir() else None
            write_config(config, spec.name, Run.create(path, overwrite))
        accelerator.wait_for_everyone()
        return _fit(spec, config, Run(path), accelerator, callbacks, partial(_discard, Run(path), before))
    finally:
        release_accelerator(accelerator)


def resume(
    run: str | Path,
    callbacks: Sequence[Callback] = (),
    *,
    epochs: int | None = None,
    patience: int | None = None,
) -> Path:
    """Continue a run from its newest checkpoint, as it was configured, or for longer.

    A finished run is left as it is, unless it is extended by `epochs` or `patience`. The learning rate then
    follows the schedule of a run of so many epochs, from where the run stands: after a cosine has ended it
    rises again. Patience counts from there. A killed extension continues without these options.

    Args:
        callbacks: as in `train`.
        epochs: of the run as a whole, more than it has behind it.
        patience: another one.

    Raises:
        FileNotFoundError, ValueError: no such run, its data or checkpoint is damaged or changed, or it has as
            many epochs.
    """
    from atconv.engine.callbacks import check_callbacks
    from atconv.engine.distributed import make_accelerator, release_accelerator

    check_callbacks(callbacks)
    if run:
        Run(Path(run)).recover()
    folder = open_run(run)
    spec = task_of(folder)
    config = spec.read_config(folder)
    changes = {"epochs": epochs, "patience": patience}
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    extends = any(value is not None for value in changes.values())
    accelerator = make_accelerator(config, str(folder.path))
    try:
        return _fit(spec, config, folder, accelerator, callbacks, extends=extends)
    finally:
        release_accelerator(accelerator)


def train_or_resume(config: Any, run: Path) -> None:
    """Train in a folder, or continue what was interrupted there at any moment. A finished run is kept."""
    if (run / "config.yaml").is_file():
        resume(run)
    else:
        shutil.rmtree(run, ignore_errors=True)  # it was interrupted before there was anything to resume
        train(config, run)


def _task_of_config(config: Any) -> TaskSpec:
    specs = [get_task(name) for name in TASKS]
    for spec in specs:
        if isinstance(config, spec.config):
            return spec
    names = ", ".join(spec.config.__name__ for spec in specs)
    raise TypeError(f"train takes a configuration ({names}), got a {type(config).__name__}")


def _discard(run: Run, before: Collection[str] | None, error: Exception) -> None:
    """Leave a folder as it was `before` a run that failed before its first step: the names in it, or None
    where there was no folder. The list of unreadable files stays where it says what is wrong."""
    from atconv.data.checking import TooManyUnreadable

    kept = {*(before or ()), *(["skipped.csv"] if isinstance(error, TooManyUnreadable) else [])}
    run.discard(kept, keep_folder=before is not None)
    run.bring_back()


def _set_aside(path: Path) -> None:
    """Make place for a new run in the folder of an earlier one."""
    run = open_run(path)
    spec = task_of(run)
    spec.read_config(run)  # raises where config.yaml is not of a run: the files are then not ours
    run.set_aside(spec.writes, spec.evaluation_writes)


def _fit(
    spec: TaskSpec,
    config: Any,
    run: Run,
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    discard: Callable[[Exception], None] | None = None,
    extends: bool = False,
) -> Path:
    """Train what is left to train in a run's folder, then report once. `discard` is called where a new run
    fails before its first step. One that `extends` is of another length than it was configured with."""
    from contextlib import ExitStack

    from atconv.engine.checkpoint import latest_checkpoint
    from atconv.engine.extension import epochs_behind, save_extension

    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(run_lock(run))
            stack.enter_context(run_log(run))
        try:
            extended_at = epochs_behind(run, config.epochs) if extends else read_extended_at(run)
            task, trainer = _prepare(spec, config, run, accelerator, callbacks, extended_at)
        except Exception as error:
            if discard is not None and accelerator.is_main_process:
                discard(error)
            raise
        if accelerator.is_main_process:
            shutil.rmtree(run.aside, ignore_errors=True)
        if trainer.finished and run.metrics.is_file():
            longer = f"To train longer, give --epochs, more than {trainer.epoch}"
            logger.info("%s is finished already; its metrics are in %s. %s", run.path, run.metrics, longer)
            return run.path
        if accelerator.is_main_process:
            run.metrics.unlink(missing_ok=True)  # of before the run was extended: it is written last
            if extends:
                save_extension(trainer, spec.name, extended_at)
        if trainer.step:
            logger.info("resuming at epoch %d, step %d", trainer.epoch + 1, trainer.step)
        try:
            history = trainer.fit()
        except KeyboardInterrupt:
            saved = latest_checkpoint(run.checkpoints)
            if saved is None:
                logger.info("interrupted before the first checkpoint: %s", run.ways_on)
            else:
                logger.info("interrupted; --resume %s continues from %s", run.path, saved.name)
            raise
        if accelerator.is_main_process:
            task.report(history)
    return run.path


def _prepare(
    spec: TaskSpec,
    config: Any,
    run: Run,
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    extended_at: int,
) -> tuple[Any, Any]:
    """Everything up to the first step: data, model, batches, checkpoint."""
    from atconv.engine.batch_plan import plan_batches
    from atconv.engine.callbacks import default_callbacks
    from atconv.engine.checkpoint import latest_checkpoint
    from atconv.engine.trainer import Trainer
    from atconv.tasks.common.inhibition import InhibitionLogger

    task = spec.make_task(config, run, accelerator)
    if config.patience is not None and task.monitor is None:
        raise ValueError(
            f"patience needs a score that says which epoch is better, and {spec.name} has none: the last "
            "epoch is kept. Leave patience out"
        )
    processes, main_process = accelerator.num_processes, accelerator.is_main_process
    plan_for = partial(
        plan_batches, samples=task.samples, processes=processes, even=task.pairs, min_batch=task.min_batch
    )
    if (config.find_lr or config.auto_find_batch_size) and latest_checkpoint(run.checkpoints) is None:
        from atconv.engine.tuning import tune

        tune(config, task, run, accelerator, plan_for)
        if main_process:
            write_config(config, spec.name, run)  # with what was found: a resumed run does not search again
    plan, tracker = plan_for(config), bool(accelerator.log_with)
    used = default_callbacks(config.patience, tracker, main_process, extended_at)
    if main_process:
        logger.info(plan.message)
        task.save_config()
        used += [InhibitionLogger(), *task.callbacks()]
    return task, Trainer(task, config, plan, run, accelerator, [*used, *callbacks])
