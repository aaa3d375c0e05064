"""Options that say which network a run trains and what it starts from, for all tasks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from atconv.engine.options import Rule
from atconv.engine.run import Run

__all__ = ["ModelOptions", "log_start"]

logger = logging.getLogger(__name__)

_CHANNELS = Rule("be 3 (color) or 1 (gray)", "3 or 1", lambda value: value in (1, 3))


@dataclass(kw_only=True)
class ModelOptions:
    """The network, and what it starts from."""

    group: ClassVar[str] = "model"
    common: ClassVar[tuple[str, ...]] = ("model", "checkpoint", "in_chans")

    model: str = "attnet_xxs"
    """model by timm's name"""
    model_args: dict[str, Any] = field(default_factory=dict)
    """more arguments of the model, by name"""
    checkpoint: str | None = None
    """start from another run's folder, or from the authors' file (.pth or .safetensors)"""
    in_chans: Annotated[int, _CHANNELS] = 3
    """3 reads images in color, 1 in gray"""

    def source_run(self) -> Run | None:
        """The run whose folder `checkpoint` is; None where that is a file, or not given.

        Raises:
            FileNotFoundError: the checkpoint does not exist.
            ValueError: it is the folder of something else.
        """
        if self.checkpoint is None:
            return None
        if not Path(self.checkpoint).exists():
            raise FileNotFoundError(f"no such file or run: {self.checkpoint}")
        return Run.open(self.checkpoint) if Path(self.checkpoint).is_dir() else None


def log_start(config: ModelOptions, source: ModelOptions, kept: int, new: Sequence[str]) -> None:
    """Say what a model takes from a run.

    Args:
        config: of the new run.
        source: of that run.
        kept: how many tensors are its.
        new: names of those that are not, being of another shape.
    """
    text = f"{config.model} starts from {config.checkpoint}: {kept} tensors are kept"
    text += f"; newly initialized, being of another shape there: {', '.join(new)}" if new else ""
    text += f"; in_chans {config.in_chans} as there"
    for name in ("image_size", "interpolant"):
        here, there = getattr(config, name, None), getattr(source, name, None)
        if here != there:
            text += f"; {name} {here}, {there} there"
    logger.info(text)
