"""A training step of AttNet-T2 against the plain transcription: seconds, and peak memory in a fresh process."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from attnet_inference import SIDE, make_attnet
from machine import machine_line
from timing import by_turns
from torch import nn
from transcription import transcribe

CLASSES = 1000
STEPS_FOR_MEMORY = 3


def make(form: str) -> nn.Module:
    """ "ours", "transcription" or "ours, compiled", in training mode."""
    model = make_attnet().train()
    if form == "transcription":
        return transcribe(model)
    model = model.to(memory_format=torch.channels_last)
    return torch.compile(model) if "compiled" in form else model


def make_step(model: nn.Module, dtype: torch.dtype, batch: int) -> Callable[[], None]:
    """Forward, backward and AdamW; bfloat16 is autocast."""
    images, labels = torch.randn(batch, 3, SIDE, SIDE), torch.randint(CLASSES, (batch,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_memory(form: str, dtype: torch.dtype, batch: int) -> float:
    """MiB above the idle model and its first optimizer step's state, in this process."""
    step = make_step(make(form), dtype, batch)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    for _ in range(STEPS_FOR_MEMORY):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--forms", nargs="+", default=["transcription", "ours", "ours, compiled"])
    parser.add_argument("--memory", action="store_true", help="print the peak of one form and dtype")
    options = parser.parse_args()
    if options.memory:
        machine_line()
        print(peak_memory(options.forms[0], getattr(torch, options.dtype[0]), options.batch))
        return
    print(machine_line())
    for name in options.dtype:
        dtype = getattr(torch, name)
        steps = {form: make_step(make(form), dtype, options.batch) for form in options.forms}
        for form, value in by_turns(steps).items():
            print(f"{name} {form}: {1000 * value:.0f} ms a step", flush=True)
        for form in options.forms:
            told = [sys.executable, __file__, "--memory", "--dtype", name, "--forms", form]
            peak = float(subprocess.run(told, capture_output=True, text=True, check=True).stdout)
            print(f"{name} {form}: {peak:.0f} MiB above the idle model", flush=True)


if __name__ == "__main__":
    main()
