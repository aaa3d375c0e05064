"""What a table was measured on."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import timm
import torch

from atconv import tune_allocator
from atconv.ops.processor import cpu_has_bf16

__all__ = ["dtypes", "machine_line", "machine_name"]


def machine_line() -> str:
    """Processor, threads, allocator, versions. Tunes the allocator unless ATCONV_KEEP_ALLOCATOR is set."""
    allocator = "glibc, tuned by atconv.tune_allocator" if tune_allocator() else "as the system has it"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    return (
        f"{_processor()} ({_instructions()}), {torch.get_num_threads()} threads, allocator: {allocator}, "
        f"{versions}."
    )


def machine_name() -> str:
    """The processor, its instructions and the threads, as a file's name."""
    name = f"{_processor()} {_instructions()} {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def dtypes() -> list[torch.dtype]:
    """Those that this processor multiplies in: float32, and bfloat16 where it has instructions for it."""
    return [torch.float32, *([torch.bfloat16] if cpu_has_bf16() else [])]


def _instructions() -> str:
    half = "bf16" if len(dtypes()) > 1 else "no bf16"
    return f"{torch.backends.cpu.get_cpu_capability()}, {half}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return re.sub(r"\((R|TM)\)", "", next(names, platform.processor()))
