"""The line that every table begins with: what it was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from atconv import tune_allocator


def machine_line() -> str:
    """Processor, threads, allocator, versions. Tunes the allocator unless ATCONV_KEEP_ALLOCATOR is set."""
    allocator = "glibc, tuned by atconv.tune_allocator" if tune_allocator() else "as the system has it"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} threads, allocator: {allocator}, {versions}."


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
