"""A training step of AttNet-T2 and of its plain transcription: seconds, and memory in a new process.

python benchmarks/training.py memory plain bfloat16      # bytes above the idle model, printed
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv import tune_allocator
from atconv.deploy.timing import median_seconds
from memory import peak_above
from models import attnet, check_same_step, images, plain

__all__ = ["memory", "seconds"]

BATCH = 8
MAKE: dict[str, Callable[[], nn.Module]] = {"plain": plain, "ours": attnet}


def seconds(dtype: torch.dtype, compile: bool = False) -> list[dict[str, Any]]:
    """Seconds of forward, backward and optimizer step. Weights stay float32, bfloat16 is autocast's."""
    x = images(BATCH)
    models = {name: make() for name, make in MAKE.items()}
    check_same_step(models["plain"], models["ours"], x, dtype)
    steps = {name: make_step(model, x, dtype) for name, model in models.items()}
    took = {}
    if compile:
        models["ours, compiled"] = attnet()
        models["ours, compiled"].compile()
        started = time.perf_counter()  # AdamW turns rounding errors into full steps: compare before any
        check_same_step(models["ours"], models["ours, compiled"], x, dtype)
        took["ours, compiled"] = time.perf_counter() - started
        steps["ours, compiled"] = make_step(models["ours, compiled"], x, dtype)
    medians = median_seconds(steps)
    return [{"model": name, "seconds": medians[name], "compile": took.get(name)} for name in steps]


def make_step(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Each call is one step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    labels = torch.arange(len(x))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def memory(dtype: torch.dtype) -> list[dict[str, Any]]:
    """Peak resident memory of forward and backward above the idle model, each in a new process."""
    kind = str(dtype).removeprefix("torch.")
    rows = []
    for name in MAKE:
        command = [sys.executable, str(Path(__file__)), "memory", name, kind]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append({"model": name, "bytes": int(printed)})
    return rows


def _print_memory(name: str, dtype: torch.dtype) -> None:
    tune_allocator()
    model, x = MAKE[name]().train(), images(BATCH)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(x).float().logsumexp(1).mean()
        loss.backward()

    print(peak_above(run))


if __name__ == "__main__":
    _, _, which, kind = sys.argv
    _print_memory(which, getattr(torch, kind))
