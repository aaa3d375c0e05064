"""Training a run of any task: from its configuration, from a checkpoint, or for longer."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint
from atconv.engine.recipes import continued_config, read_extended_at, write_config
from atconv.engine.run import Run, next_run_dir, run_lock, run_log
from atconv.tasks.registry import open_run, task_of, task_of_config
from atconv.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atconv.engine.trainer import Callback, Trainer

__all__ = ["resume", "train", "train_or_resume"]

logger = logging.getLogger(__name__)


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
        TypeError: `config` is of no task, or `callbacks` are none or have hooks that cannot be called.
        ValueError: an option, the data or the weights do not fit; nothing was trained, no folder is left.
        FloatingPointError: the loss is not finite; checkpoints so far are kept.
        OSError: a disk is full or read-only; the last complete checkpoint is kept.
    """
    from atconv.engine.callbacks import check_callbacks
    from atconv.engine.distributed import make_accelerator, release_accelerator

    check_callbacks(callbacks)
    spec = task_of_config(config)
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
    *,
    callbacks: Sequence[Callback] = (),
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

    check_callbacks(callbacks)
    if run:
        Run(Path(run)).recover()
    folder = open_run(run)
    spec = task_of(folder)
    config = spec.read_config(folder)
    changes = {"epochs": epochs, "patience": patience}
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    extends = any(value is not None for value in changes.values())
    return _continue(spec, config, folder, callbacks, extends)


def train_or_resume(config: Any, run: Path) -> None:
    """Train in a folder, or continue what was interrupted there at any moment, on the device that `config`
    names now. A finished run is kept.

    Raises:
        ValueError: the run was begun with other options.
    """
    folder = Run(run)
    if not folder.config.is_file():
        shutil.rmtree(run, ignore_errors=True)  # it was interrupted before there was anything to resume
        train(config, run)
        return
    folder.recover()
    spec = task_of_config(config)
    config = continued_config(folder, spec.inherit_config(config, ()), spec.name)
    _continue(spec, config, folder, (), extends=False)


def _continue(spec: TaskSpec, config: Any, run: Run, callbacks: Sequence[Callback], extends: bool) -> Path:
    from atconv.engine.distributed import make_accelerator, release_accelerator

    accelerator = make_accelerator(config, str(run.path))
    try:
        return _fit(spec, config, run, accelerator, callbacks, extends=extends)
    finally:
        release_accelerator(accelerator)


def _discard(run: Run, before: Collection[str] | None, error: Exception) -> None:
    """Leave a folder as it was `before` a run that failed before its first step: the names in it, or None
    where there was no folder. The list of unreadable files stays where it says what is wrong."""
    from atconv.data.unreadable import TooManyUnreadable

    kept = {*(before or ()), *(["skipped.csv"] if isinstance(error, TooManyUnreadable) else [])}
    run.discard(kept, keep_folder=before is not None)
    run.bring_back()


def _set_aside(path: Path) -> None:
    """Make place for a new run in the folder of an earlier one."""
    run = open_run(path)
    spec = task_of(run)
    spec.read_config(run)  # raises where config.yaml is not of a run: the files are then not ours
    run.set_aside(spec.writes, spec.evaluation_writes)


def _epochs_behind(run: Run, epochs: int) -> int:
    """The epochs that a run has behind it.

    Raises:
        ValueError: it has no checkpoint, or is to have no more `epochs` than that.
    """
    newest = latest_checkpoint(run.checkpoints)
    if newest is None:
        raise ValueError(f"{run.path} has no checkpoint to train longer from: {run.ways_on}")
    epoch = int(load_checkpoint(newest)["epoch"])
    if epochs <= epoch:
        raise ValueError(f"{run.path} has {epoch} epochs behind it: give --epochs {epoch + 1} or more")
    return epoch


def _save_extension(trainer: Trainer, task: str, extended_at: int) -> None:
    """Write how long a run is from now on, and say what its learning rate does."""
    config, before = trainer.config, trainer.lr
    write_config(config, task, trainer.run, extended_at)
    trainer.scheduler.step_update(trainer.step)  # as its next step does
    logger.info(
        "extended at epoch %d to %d epochs: the learning rate, %.3g so far, follows the %s schedule of %d "
        "epochs from here, with %.3g next",
        *(extended_at, config.epochs, before, config.schedule, config.epochs, trainer.lr),
    )


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
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(run_lock(run))
            stack.enter_context(run_log(run))
        try:
            extended_at = _epochs_behind(run, config.epochs) if extends else read_extended_at(run)
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
                _save_extension(trainer, spec.name, extended_at)
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
    from atconv.engine.callbacks import default_callbacks
    from atconv.engine.trainer import Trainer
    from atconv.tasks.common.inhibition import InhibitionLogger

    task = spec.make_task(config, run, accelerator)
    if config.patience is not None and task.monitor is None:
        raise ValueError(
            f"patience needs a score that says which epoch is better, and {spec.name} has none: the last "
            "epoch is kept. Leave patience out"
        )
    main_process = accelerator.is_main_process
    if (config.find_lr or config.auto_find_batch_size) and latest_checkpoint(run.checkpoints) is None:
        from atconv.engine.tuning import tune

        tune(config, task)
        if main_process:
            write_config(config, spec.name, run)  # with what was found: a resumed run does not search again
    used = default_callbacks(config.patience, bool(accelerator.log_with), main_process, extended_at)
    if main_process:
        used.append(InhibitionLogger())
        task.save_config()  # before a trainer shards the model, which changes its class
    trainer = Trainer(task, config, [*used, *callbacks])
    if main_process:
        logger.info(trainer.plan.message)
    return task, trainer
