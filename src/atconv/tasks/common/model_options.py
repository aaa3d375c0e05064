"""Options that say which network a run trains and what it starts from, for all tasks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

from atconv.engine.options import Rule
from atconv.engine.run import Run
from atconv.tasks.registry import open_run

__all__ = ["ModelOptions"]

_CHANNELS = Rule("be 3 (color) or 1 (gray)", "3 or 1", lambda value: value in (1, 3))
_SET = {"in_chans", "drop_path_rate", "drop_rate", "label_dropout"}  # arguments by options
_OF_DATA = {"num_classes", "in_channels"}


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
    """start from another run's folder, or the authors' file (.pth, .safetensors)"""
    in_chans: Annotated[int, _CHANNELS] = 3
    """3 reads images in color, 1 in gray"""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the loop's options, which check types
        names = {field.name for field in fields(self)}
        for name in _SET & names & set(self.model_args):
            raise ValueError(f"model_args holds {name}: give --{name.replace('_', '-')} instead")
        for name in _OF_DATA & set(self.model_args):
            raise ValueError(f"model_args holds {name}: the data say how many; leave it out")

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
        return open_run(self.checkpoint) if Path(self.checkpoint).is_dir() else None
