"""A few ratios in a few minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from atconv.ops.allocator import KEEP_VARIABLE
from inference import eager
from one_pass import ONE_PASS
from operators import operators
from sizes import sizes
from training import memory, seconds

__all__ = ["print_ratios"]


def print_ratios() -> None:
    """Print them, each as soon as it is known."""
    forward = {row["model"]: row["seconds"] for row in eager(torch.float32, 8)}
    _print("as it comes ÷ floor of products", forward["as it comes"] / forward["floor"])
    _print("folded ÷ floor of products", forward["folded"] / forward["floor"])
    _print("folded ÷ ConvNeXt-T", forward["folded"] / forward["ConvNeXt-T"])
    steps = {row["model"]: row["seconds"] for row in seconds(torch.float32)}
    peaks = {row["model"]: row["bytes"] for row in memory(torch.float32)}
    _print(
        f"training step, plain ÷ ours (memory ours ÷ plain: {peaks['ours'] / peaks['plain']:.2f})",
        steps["plain"] / steps["ours"],
    )
    for name in ONE_PASS:
        default, tuned = (_in_new_process(name, refuse) for refuse in ("1", "0"))
        _print(f"forward pass of {name} in a new process, system's allocator ÷ tuned", default / tuned)
    grown = {row["size"]: row["seconds"] for row in sizes((224, 1024), False) if row["model"] == "AttNet-T2"}
    _print("seconds a pixel, 1024² ÷ 224²", grown[1024] / grown[224] * (224 / 1024) ** 2)
    layers = {(r["mixer"], r["backward"]): r["seconds"] for r in operators(torch.float32, (56,))}
    _print("self-attention ÷ ATConv, forward, 56²", layers["self-attention", False] / layers["ATConv", False])


def _print(what: str, ratio: float) -> None:
    print(f"{ratio:6.2f} ×  {what}", flush=True)


def _in_new_process(name: str, refuse: str) -> float:
    environment = os.environ | {KEEP_VARIABLE: refuse}
    command = [sys.executable, str(Path(__file__).with_name("one_pass.py")), name]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
