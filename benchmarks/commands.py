"""What the allocator is worth to the commands: `atconv train`, `evaluate`, `predict` with it tuned and not.

The commands run interleaved, with AttNet-T2 at 224², on images of random noise: speed does not depend on
their content.
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

from atconv.ops.allocator import KEEP_VARIABLE

__all__ = ["commands"]

ROUNDS = 3
TRAIN, TEST, FEW = 48, 48, 8
# A child's peak counts from the memory of the process that starts it, so a small one does.
_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
ATCONV = [sys.executable, "-m", "atconv"]
TRAINING = (
    "--model attnet_t2 --image-size 224 --epochs 1 --batch-size 8 --base-batch-size 8 "
    "--workers 0 --tracker none --val-fraction 0.1 --warmup-epochs 0"
)


def commands() -> list[dict[str, Any]]:
    """Seconds an image and peak memory of each command, with the system's allocator and the tuned one.

    Seconds are medians of rounds, memory is the maximum.
    """
    measurements: dict[tuple[str, bool], list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_images(folder / "data", TRAIN)
        _write_images(folder / "test", TEST)
        for round_ in range(ROUNDS):
            for tuned in (False, True):
                run = folder / f"run-{round_}-{tuned}"
                for command, measurement in _measure(folder, run, tuned).items():
                    measurements.setdefault((command, tuned), []).append(measurement)
    rows = []
    for (command, tuned), rounds in measurements.items():
        seconds, peaks = zip(*rounds, strict=True)
        rows.append(
            {"command": command, "tuned": tuned, "seconds": statistics.median(seconds), "bytes": max(peaks)}
        )
    return rows


def _write_images(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (224, 224, 3), np.uint8)).save(path)


def _measure(folder: Path, run: Path, tuned: bool) -> dict[str, tuple[float, int]]:
    """Seconds an image and peak memory, by command."""
    data, test = str(folder / "data"), str(folder / "test")
    training = _call(tuned, "train", data, *TRAINING.split(), "--out", str(run))
    with (run / "metrics.csv").open() as file:
        rate = float(next(csv.DictReader(file))["images_per_second"])
    evaluating = _call(tuned, "evaluate", str(run), test, "--batch-size", "8", "--workers", "0")
    evaluated = json.loads(next(run.glob("evaluation/*/metrics.json")).read_text())
    started = time.perf_counter()
    images = sorted(map(str, Path(test).rglob("*.png")))
    _call(tuned, "predict", str(run), *images[:FEW])
    between = time.perf_counter()
    predicting = _call(tuned, "predict", str(run), *images)
    # starting up takes the same for few images and for many
    an_image = (time.perf_counter() - 2 * between + started) / (TEST - FEW)
    return {
        "train": (1 / rate, training),
        "evaluate": (1 / evaluated["images_per_second"], evaluating),
        "predict": (an_image, predicting),
    }


def _call(tuned: bool, *arguments: str) -> int:
    """Run a command; the peak of its resident memory in bytes."""
    environment = os.environ | {KEEP_VARIABLE: "0" if tuned else "1", "COLUMNS": "200"}
    command = [sys.executable, "-c", _PEAK, *ATCONV, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"atconv {' '.join(arguments)}: {done.stderr}")
    return int(done.stdout) * 1024
