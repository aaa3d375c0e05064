"""SiTs that are small enough for tests, and generation runs of them."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from atconv.models.sit import SiT
from atconv.tasks import train
from atconv.tasks.generation.config import GenerationConfig
from atconv_command import main
from support.helpers import FIXTURES, randomize
from support.plots import empty_plots
from support.tiny import Finished, KillAt, atconv, reset_accelerate

empty_plots("generation.task.GenerationTask.plot_samples", "generation.task.plot_curves")

FAMILIES = ("attention", "atconv", "hybrid")

# 339 training images or nearly so: ten steps an epoch.
TINY_RUN: dict[str, Any] = {
    "data": "digits",
    "test_fraction": 0.21,
    "model": "sit_atconv_s_2",
    "model_args": {"hidden_size": 32, "depth": 2, "num_heads": 2},
    "image_size": 8,
    "in_chans": 1,
    "epochs": 1,
    "batch_size": 32,
    "base_batch_size": 32,
    "warmup_epochs": 0.0,
    "weight_decay": 0.0,  # as in the recipe that the command starts from
    "workers": 0,
    "device": "cpu",
    "tracker": "none",
    "sample_every": 0,
}


def tiny_sit(**changes: Any) -> SiT:
    """A SiT of two blocks in eval mode with weights that matter (newly initialized ones predict zero)."""
    arguments = {"in_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    return randomize(SiT(**{**arguments, **changes})).eval()


def inputs_of(model: SiT, batch: int = 3, height: int = 8, width: int = 8) -> tuple[Tensor, ...]:
    """x, t and, where the model has classes, labels."""
    x, t = torch.randn(batch, model.in_channels, height, width), torch.rand(batch)
    return (x, t, torch.arange(batch) % model.num_classes) if model.num_classes else (x, t)


def transport() -> dict[str, Tensor]:
    """The release's interpolants and ODE end points."""
    return load_file(FIXTURES / "transport.safetensors")


def tiny_run_config(**changes: Any) -> GenerationConfig:
    return GenerationConfig(**(TINY_RUN | changes))


def tiny_run_options(**changes: Any) -> list[str]:
    """The same as options of `atconv generate train`, without DATA."""
    options = {k: v for k, v in (TINY_RUN | changes).items() if k != "data"}
    return [option(name, value) for name, value in options.items()]


def option(name: str, value: Any) -> str:
    """An option of a command."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{dashed}" if value else f"--no-{dashed}"
    return f"--{dashed}={value if isinstance(value, str) else json.dumps(value)}"


def train_tiny_sit(run: Path, **changes: Any) -> Path:
    """Train in this process."""
    reset_accelerate()
    return train(tiny_run_config(**changes), run)


@functools.cache
def generation_run() -> Path:
    """One finished run with classes that tests read and never write to."""
    return train_tiny_sit(_temporary_folder() / "run", epochs=2)


@functools.cache
def unconditional_run() -> Path:
    """One finished run without classes that tests read and never write to."""
    return train_tiny_sit(_temporary_folder() / "run", conditional=False)


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def atconv_generate(*arguments: str | Path, kill_at: KillAt | None = None) -> Finished:
    """Run `atconv generate ARGUMENT...` in a process of its own to its end, or until it is killed (−9)."""
    return atconv("generate", *arguments, kill_at=kill_at)


def generate_here(*arguments: str | Path) -> None:
    """The same command in this process: exits with 2 for bad input."""
    reset_accelerate()
    with mock.patch.object(sys, "argv", ["atconv", "generate", *map(str, arguments)]):
        main()
