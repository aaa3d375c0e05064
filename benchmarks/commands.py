"""What the allocator is worth to the commands: `atconv train`, `evaluate`, `predict` with it tuned and not.

The commands run by turns, with AttNet-T2 at 224², on pictures of random noise: speed does not ask what is
on them.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atconv.allocator import REFUSE_VARIABLE

__all__ = ["commands"]

TURNS = 3
TRAIN, TEST, FEW = 48, 48, 8
ATCONV = [sys.executable, "-m", "atconv.cli"]
TRAINING = (
    "--model attnet_t2 --image_size 224 --epochs 1 --batch_size 8 --lr_batch 8 --workers 0 --tracker none "
    "--val_fraction 0.1 --warmup_epochs 0"
)


def commands() -> list[dict[str, Any]]:
    """Seconds an image of each command, with the system's allocator and the tuned one: medians of turns."""
    found: dict[tuple[str, bool], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _draw(folder / "data", TRAIN)
        _draw(folder / "test", TEST)
        for turn in range(TURNS):
            for tuned in (False, True):
                run = folder / f"run-{turn}-{tuned}"
                for command, seconds in _measure(folder, run, tuned).items():
                    found.setdefault((command, tuned), []).append(seconds)
    return [
        {"command": command, "tuned": tuned, "seconds": statistics.median(values)}
        for (command, tuned), values in found.items()
    ]


def _draw(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (224, 224, 3), np.uint8)).save(path)


def _measure(folder: Path, run: Path, tuned: bool) -> dict[str, float]:
    data, test = str(folder / "data"), str(folder / "test")
    _call(tuned, "train", data, *TRAINING.split(), "--out", str(run))
    with (run / "metrics.csv").open() as file:
        rate = float(next(csv.DictReader(file))["images_per_second"])
    _call(tuned, "evaluate", str(run), test, "--batch_size", "8", "--workers", "0")
    evaluated = json.loads(next(run.glob("evaluation/*/metrics.json")).read_text())
    seconds = {"train": 1 / rate, "evaluate": 1 / evaluated["images_per_second"]}
    started = time.perf_counter()
    pictures = sorted(map(str, Path(test).rglob("*.png")))
    _call(tuned, "predict", str(run), *pictures[:FEW])
    between = time.perf_counter()
    _call(tuned, "predict", str(run), *pictures)
    # starting up takes the same for few pictures and for many
    seconds["predict"] = (time.perf_counter() - 2 * between + started) / (TEST - FEW)
    return seconds


def _call(tuned: bool, *arguments: str) -> None:
    environment = os.environ | {REFUSE_VARIABLE: "0" if tuned else "1", "COLUMNS": "200"}
    done = subprocess.run([*ATCONV, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"atconv {' '.join(arguments)}: {done.stderr or done.stdout}")
