"""Keep glibc from handing large buffers back after every operation (Linux, CPU)."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["KEEP_VARIABLE", "tune_allocator"]

# Set this environment variable to anything but 0 to leave the allocator alone.
KEEP_VARIABLE = "ATCONV_KEEP_ALLOCATOR"

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# Bytes: the largest power of two that mallopt's int takes, and the maximum of older releases of glibc.
_THRESHOLDS = (1 << 30, 1 << 25)


def tune_allocator() -> bool:
    """Make glibc keep freed buffers of up to 1 GiB for the next operation, in this process.

    By default glibc maps every large buffer again and returns it after use, so eager PyTorch on a CPU
    spends its time in page faults. This helps any eager PyTorch model, and costs some memory: freed
    buffers stay with the process.

    The commands call it; a library user calls it once, before the first model runs. Without effect
    outside Linux with glibc, or when the environment variable ATCONV_KEEP_ALLOCATOR is set.

    Returns:
        whether the allocator was changed.
    """
    if not sys.platform.startswith("linux") or os.environ.get(KEEP_VARIABLE, "0") != "0":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another libc, such as musl
        return False
    trims_later = bool(mallopt(_M_TRIM_THRESHOLD, _THRESHOLDS[0]))
    return any(mallopt(_M_MMAP_THRESHOLD, threshold) for threshold in _THRESHOLDS) and trims_later
