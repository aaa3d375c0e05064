"""Peak resident memory of a call (Linux)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["peak_above"]


def peak_above(call: Callable[[], object]) -> int:
    """Bytes by which the process grew at most while the call ran."""
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
