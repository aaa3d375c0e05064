"""Training a run for longer than it was configured for."""

from __future__ import annotations

import logging

from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint
from atconv.engine.recipes import write_config
from atconv.engine.run import Run
from atconv.engine.trainer import Trainer

__all__ = ["epochs_behind", "save_extension"]

logger = logging.getLogger(__name__)


def epochs_behind(run: Run, epochs: int) -> int:
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


def save_extension(trainer: Trainer, task: str, extended_at: int) -> None:
    """Write how long a run is from now on, and say what its learning rate does."""
    config, before = trainer.config, trainer.lr
    write_config(config, task, trainer.run, extended_at)
    trainer.scheduler.step_update(trainer.step)  # as its next step does
    logger.info(
        "extended at epoch %d to %d epochs: the learning rate, %.3g so far, follows the %s schedule of %d "
        "epochs from here, with %.3g next",
        *(extended_at, config.epochs, before, config.schedule, config.epochs, trainer.lr),
    )
