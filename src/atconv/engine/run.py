"""A run's folder: what lies where, and how to open its model.

    runs/NAME/
        config.yaml         the complete, re-runnable configuration
        split.json          which images were on which side
        metrics.csv         one row an epoch       inhibition.csv   λ by layer and epoch
        checkpoints/step-N  everything needed to resume
        config.json, model.safetensors             the best model, as timm reads it
        *.png               pictures

The last two make `timm.create_model("local-dir:runs/NAME", pretrained=True)` work.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from atconv.data.images import PrepareImage

__all__ = ["EvalTransform", "Run", "TooManyUnreadable", "load", "next_run_dir", "resolve_device"]

_LEFT_BEHIND = {"skipped.csv"}  # what a refused run may leave in its folder


class TooManyUnreadable(ValueError):
    """More files are unreadable than a run was told to leave out; they are listed in skipped.csv."""


@dataclass(frozen=True)
class Run:
    """The paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def split(self) -> Path:
        return self.path / "split.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def model_config(self) -> Path:
        return self.path / "config.json"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @classmethod
    def create(cls, path: str | Path) -> Run:
        """Make the folder of a new run.

        Raises:
            ValueError: it exists and is not empty; nothing in it is touched.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or {child.name for child in path.iterdir()} - _LEFT_BEHIND):
            raise ValueError(
                f"{path} exists already: resume it with --resume {path}, or name another with --out"
            )
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @property
    def task(self) -> str | None:
        """ "detection" or "segmentation", where the run is of a dense task and has begun to train."""
        try:
            told = json.loads(self.model_config.read_text())
            found: str | None = told.get("_atconv", told).get("task")
        except (OSError, ValueError, AttributeError):
            return None
        return found

    def discard(self, keep_skipped: bool = False) -> None:
        """Remove the folder of a run that never trained, all but the list of skipped files if asked."""
        for child in self.path.iterdir():
            if child.is_dir():
                shutil.rmtree(child, ignore_errors=True)
            elif not (keep_skipped and child.name == "skipped.csv"):
                child.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def read_weights(self) -> dict[str, Tensor]:
        """The weights of the best model.

        Raises:
            ValueError: no epoch has finished, or the file is damaged.
        """
        if (self.path / "model_index.json").is_file():
            raise ValueError(
                f"{self.path} is a generation run: it has no classifier. Give a run of atconv train"
            )
        if not self.model_config.is_file() or not self.weights.is_file():
            raise ValueError(
                f"{self.path} has no model yet: its first epoch has not finished. "
                f"Continue its training with --resume {self.path}"
            )
        try:
            return load_file(self.weights)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.weights} is damaged: {error}") from error

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the folder of a run that was started.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the folder is not a run's.
        """
        run = cls(Path(path))
        if not run.path.is_dir():
            raise FileNotFoundError(f"no such run folder: {run.path}")
        if not run.config.is_file() and not run.model_config.is_file():
            raise ValueError(f"{run.path} is not a run: it has neither config.yaml nor config.json")
        return run


def load(run: str | Path) -> tuple[nn.Module, EvalTransform, list[str]]:
    """Open the best model of a classification run.

    >>> model, transform, classes = atconv.load("runs/mine")
    >>> logits = model(transform(Image.open("cat.jpg"))[None])       # 1 × len(classes)

    Args:
        run: the run's folder.

    Returns:
        the model in eval mode on the CPU; the transform from any PIL image to the model's input
        (C H W); the names of its classes.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is not a run, no epoch of it has finished, or its weights are damaged.
    """
    opened = Run.open(run)
    if opened.task is not None:
        raise ValueError(f"{opened.path} is a {opened.task} run: open it with atconv.tasks.dense.load")
    state = opened.read_weights()
    try:
        model = timm.create_model(f"local-dir:{opened.path}")
        model.load_state_dict(state)
    except (json.JSONDecodeError, KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the model in {opened.path} is damaged: {reason}") from error
    pretrained: dict[str, Any] = vars(model)["pretrained_cfg"]
    classes = pretrained.get("label_names")
    if not classes:
        raise ValueError(f"{opened.path} is not a classification run: its config.json names no classes")
    return model.eval(), EvalTransform(pretrained), list(classes)


class EvalTransform:
    """The evaluation transform that a timm pretrained_cfg describes, for any PIL image → C H W."""

    def __init__(self, pretrained_cfg: dict[str, Any]) -> None:
        data = resolve_data_config({}, pretrained_cfg=pretrained_cfg)
        self.data: dict[str, Any] = data
        self.input_size: tuple[int, int, int] = tuple(data["input_size"])
        self.prepare = PrepareImage(self.input_size[0])
        self.transform = create_transform(**data, is_training=False)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(self.prepare(image))

    def describe(self) -> dict[str, Any]:
        """What it does, for programs that must do the same: resize the shorter side to the size divided by
        crop_pct, cut the center, scale values to 0…1, subtract mean, divide by std."""
        names = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
        channels, *size = self.input_size
        return {"channels": channels, "size": size} | {name: self.data[name] for name in names}


def next_run_dir(data: str, model: str) -> Path:
    """runs/DATA-MODEL, numbered where it exists."""
    name = f"{Path(data).name or 'data'}-{model}"
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1_000_000))
    return next(path for path in candidates if not path.exists())


def resolve_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is the accelerator of this machine if it has one, else its CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = found.type if found is not None else "cpu"
    if name not in ("auto", "cpu", kind):
        raise ValueError(f"device {name} is not available here ({kind} is); use auto")
    return torch.device(kind if name == "auto" else name)
