"""Runs that are small enough for tests: in this process, in others, and killed in others."""

from __future__ import annotations

import atexit
import csv
import functools
import importlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import sklearn.datasets
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from sklearn.datasets._base import load_digits
from sklearn.utils import Bunch

from atconv.tasks import train
from atconv.tasks.classification.config import ClassificationConfig
from atconv_command import main
from support.plots import draw_plots, empty_plots, plots_are_drawn

# Inherited by the processes started below: two OpenMP programs at once slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

empty_plots(
    *(
        f"classification.plots.plot_{name}"
        for name in ("confusion_matrix", "mistakes", "class_scores", "multi_label_mistakes")
    ),
    "common.report.plot_curves",
)


@functools.cache
def few_digits() -> Bunch:
    """The first 480 of the 1,797 digits: testing on the others takes longer than to train."""
    digits = load_digits()
    return Bunch(**digits | {"images": digits.images[:480], "target": digits.target[:480]})


sklearn.datasets.load_digits = few_digits

TINY_ARGS = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "stem_stride": 1}

# 339 training, 41 validation and 100 test images or nearly so: ten steps an epoch.
TINY: dict[str, Any] = {
    "data": "digits",
    "test_fraction": 0.21,
    "model": "attnet_xxs",
    "model_args": TINY_ARGS,
    "image_size": 8,
    "in_chans": 1,
    "crop_scale": (0.7, 1.0),
    "hflip": 0.0,
    "epochs": 1,
    "batch_size": 32,
    "base_batch_size": 32,
    "warmup_epochs": 0.0,
    "workers": 0,
    "device": "cpu",
    "tracker": "none",
}


def tiny_config(**changes: Any) -> ClassificationConfig:
    return ClassificationConfig(**(TINY | changes))


def tiny_options(**changes: Any) -> list[str]:
    """The same as options of `atconv train`, without DATA."""
    options = {k: v for k, v in (TINY | changes).items() if k != "data"}
    return [flag(name.replace("_", "-"), value) for name, value in options.items()]


def flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"


def reset_accelerate() -> None:
    """accelerate keeps one state for the life of a process; let the next run make its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train_tiny(run: Path, **changes: Any) -> Path:
    """Train in this process."""
    reset_accelerate()
    return train(tiny_config(**changes), run)


@functools.cache
def trained_run() -> Path:
    """One finished run that tests read and never write to."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return train_tiny(folder / "run", epochs=2)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def image_folder(root: Path, counts: dict[str, int], seed: int = 0, size: int = 8) -> Path:
    """root/CLASS/N.png: noise, no two alike."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(
                root / name / f"{i}.png"
            )
    return root


_PRELOADED = (
    "atconv.cli",
    "atconv.tasks.classification.task",
    "atconv.tasks.generation.encode",
    "atconv.tasks.generation.task",
    "sklearn.datasets",
    "sklearn.metrics",
    "support.tiny",
    "support.tiny_dense",
    "support.tiny_sit",
)


@dataclass
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class KillAt:
    """The `nth` call of a function whose arguments' text holds `text`: the process is killed instead."""

    function: str
    text: str = ""
    nth: int = 1


def atconv(*arguments: str | Path, kill_at: KillAt | None = None, own_process: bool = False) -> Finished:
    """Run `atconv ARGUMENT...` to its end: in this process, which saves seconds, or where it is to be killed
    (code −9) or asked for in a process of its own."""
    texts = [str(argument) for argument in arguments]
    if kill_at is None and not own_process:
        return _run_here(texts)
    with tempfile.TemporaryDirectory() as folder:
        process = start_atconv(*texts, output=Path(folder), kill_at=kill_at)
        process.join(180)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"atconv {' '.join(texts)} hangs")
        return Finished(
            process.exitcode, (Path(folder) / "out").read_text(), (Path(folder) / "err").read_text()
        )


def _run_here(arguments: list[str]) -> Finished:
    """The command in this process, which is left as it was."""
    reset_accelerate()
    logger, out, err = logging.getLogger("atconv"), io.StringIO(), io.StringIO()
    handlers, level, code = list(logger.handlers), logger.level, 0
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(sys, "argv", ["atconv", *arguments]),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            logger.handlers[:] = handlers
            logger.setLevel(level)
            reset_accelerate()
    return Finished(code, out.getvalue(), err.getvalue())


def start_atconv(*arguments: str | Path, output: Path, kill_at: KillAt | None = None) -> ForkServerProcess:
    """Start it in a process of its own; its output goes to the files out and err of a folder."""
    return start_process(run_command, [str(a) for a in arguments], output, kill_at, plots_are_drawn())


def preload_forkserver() -> ForkServerContext:
    """Let the server that processes are forked from import the package."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def start_process(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Call a function in a process of its own.

    It is forked from one that has imported the package, which saves seconds each.
    """
    process = preload_forkserver().Process(target=function, args=arguments)
    process.start()
    return process


def run_command(
    arguments: list[str], output: Path, kill_at: KillAt | None = None, plots: bool = False
) -> None:
    """Be the process of a command."""
    multiprocessing.set_start_method(None, force=True)  # data loaders start their workers the usual way
    # What runs in a shell's background was started with interrupts ignored, and hands that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), descriptor)
    if kill_at is not None:
        _arm(kill_at)
    sys.argv = ["atconv", *arguments]
    draw_plots(plots)
    main()


def _arm(kill_at: KillAt) -> None:
    owner_name, _, name = kill_at.function.rpartition(".")
    try:
        owner = importlib.import_module(owner_name)
    except ModuleNotFoundError:
        module, _, cls = owner_name.rpartition(".")
        owner = getattr(importlib.import_module(module), cls)
    original = getattr(owner, name)
    calls = 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += kill_at.text in repr(args)
        if calls == kill_at.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counting)
