"""A study of two mixers on digits that trains in seconds, and rows as its runs would make them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from atconv.io import write_rows
from atconv.tasks.classification.study_report import Result
from atconv.tasks.common.sweep import Job
from support.tiny import tiny_config

_FIELDS = (
    "data",
    "model",
    "model_args",
    "image_size",
    "in_chans",
    "epochs",
    "batch_size",
    "base_batch_size",
    "warmup_epochs",
    "workers",
    "device",
    "tracker",
)

TWO = {"ATConv": {"token_mixer": "atconv"}, "pooling": {"token_mixer": "pooling"}}


def study_file(path: Path, **changes: Any) -> Path:
    """Write the study's YAML file."""
    content = {
        "reference": "ATConv",
        "seeds": 2,
        "recipe": {name: getattr(tiny_config(), name) for name in _FIELDS},
        "variants": {
            "ATConv": {"token_mixer": "atconv"},
            "pooling": {"token_mixer": "pooling", "seeds": 1},
        },
    }
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def result(variant: str, seed: int, top1: float, seconds: float = 180) -> Result:
    return Result(variant, seed, top1, 1234, 5_600_000, seconds, "8 8 8 8")


def write_results(path: Path, results: Sequence[Result], precision: str = "fp32") -> None:
    write_rows(path, [asdict(each) | {"device": "cpu", "precision": precision} for each in results])


def counted_row(job: Job, run: Path) -> dict[str, Any]:
    """A run that notes each time it is made, and by which process."""
    run.mkdir(exist_ok=True)
    with (run / "made").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.05)
    return {"score": 10 * job.seed + len(job.variant)}


def endless_row(job: Job, run: Path) -> dict[str, Any]:
    counted_row(job, run)
    time.sleep(3600)
    raise AssertionError("nobody ended this run")
