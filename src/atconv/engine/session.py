"""From a configuration to a finished run: folder, devices, task, batches, loop, report; for every task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from rich.console import Console

from atconv.engine.batch_plan import plan_batches
from atconv.engine.checkpoint import latest_checkpoint
from atconv.engine.config import LoopConfig
from atconv.engine.devices import make_accelerator, release_accelerator
from atconv.engine.progress import LoggedConsole
from atconv.engine.recipes import write_config
from atconv.engine.run import Run, TooManyUnreadable
from atconv.engine.trainer import Task, Trainer

try:
    import fcntl
except ModuleNotFoundError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

__all__ = ["is_new", "resume_run", "start_run"]

C = TypeVar("C", bound=LoopConfig)
MakeTask = Callable[[C, Run, Accelerator, Console], Task]


def start_run(config: C, path: Path, make_task: MakeTask[C], console: Console | None) -> Path:
    """Make a run's folder and train in it. Returns the folder.

    Raises:
        ValueError: an option, the data or the weights do not fit; nothing was trained, no folder is left.
        FloatingPointError: the loss is not finite; checkpoints so far are kept.
        OSError: a disk is full or read-only; the last complete checkpoint is kept.
    """
    accelerator = make_accelerator(config, str(path))
    try:
        if accelerator.is_main_process:
            write_config(config, Run.create(path))
        with run_lock(Run(path), accelerator):
            accelerator.wait_for_everyone()
            try:
                task, trainer, shown = _prepare(config, Run(path), make_task, accelerator, console)
            except Exception as error:  # nothing was trained
                if accelerator.is_main_process:
                    Run(path).discard(keep_skipped=isinstance(error, TooManyUnreadable))
                raise
            return _fit(task, trainer, shown)
    finally:
        release_accelerator(accelerator)


def resume_run(config: C, run: Run, make_task: MakeTask[C], console: Console | None) -> Path:
    """Continue a run from its newest checkpoint. A finished run is left as it is. Returns its folder.

    Raises:
        ValueError: its data or checkpoint is damaged or changed.
    """
    accelerator = make_accelerator(config, str(run.path))
    try:
        with run_lock(run, accelerator):
            return _fit(*_prepare(config, run, make_task, accelerator, console))
    finally:
        release_accelerator(accelerator)


def is_new(run: Run) -> bool:
    """Whether a run's weights will not come from a checkpoint anyway."""
    return latest_checkpoint(run.checkpoints) is None


@contextmanager
def run_lock(run: Run, accelerator: Accelerator) -> Iterator[None]:
    """Hold the run's folder against another command that trains in it. A killed process lets go of it.

    Raises:
        ValueError: another process holds it.
    """
    if fcntl is None or not accelerator.is_main_process:
        yield
        return
    with run.lock.open("w") as file:
        try:
            # Not flock: data workers would inherit it, and outlive a killed process for seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"{run.path} is being trained by another process: wait for it or end it"
            ) from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            run.lock.unlink(missing_ok=True)


def _prepare(
    config: C, run: Run, make_task: MakeTask[C], accelerator: Accelerator, console: Console | None
) -> tuple[Task, Trainer, Console]:
    """Everything up to the first step: data, model, batches, checkpoint."""
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    elif console is None:
        console = LoggedConsole(run.path / "log.txt")
    task = make_task(config, run, accelerator, console)
    plan = plan_batches(config, task.samples, accelerator.num_processes, even=task.pairs)
    task.plan = plan
    console.print(plan.message, soft_wrap=True)
    if accelerator.is_main_process:
        task.save_model_config()
    if accelerator.log_with:
        accelerator.init_trackers("tracking")
    return task, Trainer(task, config, plan, run, accelerator, console), console


def _fit(task: Task, trainer: Trainer, console: Console) -> Path:
    """Train what is left to train, then report once."""
    run = trainer.run
    if trainer.finished and (run.path / "metrics.json").is_file():
        console.print(f"{run.path} is finished already; its figures are in {run.path / 'metrics.json'}")
        return run.path
    if trainer.step:
        console.print(f"resuming at epoch {trainer.epoch + 1}, step {trainer.step}")
    try:
        trainer.fit()
    except KeyboardInterrupt:
        saved = latest_checkpoint(run.checkpoints)
        if saved is None:
            console.print(f"interrupted before the first checkpoint: {run.path} holds nothing to resume")
        else:
            console.print(f"interrupted; --resume {run.path} goes on from {saved.name}")
        raise
    if trainer.accelerator.is_main_process:
        task.report(trainer, console)
    return run.path
