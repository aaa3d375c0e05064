"""In which precisions this CPU has instructions for products."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

__all__ = ["cpu_computes", "cpu_has_bf16", "cpu_has_int8"]

_INT8 = {"amx_int8", "avx512_vnni", "avx_vnni", "asimddp", "i8mm"}  # as Linux names them


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for products in bfloat16.

    oneDNN says yes on every x86 CPU with AVX-512, and computes a product in bfloat16 four times as slowly as
    in float32 on those that have AVX-512 alone.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_has_int8() -> bool:
    """Whether this CPU has instructions for products in int8: VNNI or AMX, dot products of Arm. True where
    that cannot be read."""
    info = Path("/proc/cpuinfo")
    return not info.is_file() or not _INT8.isdisjoint(info.read_text().split())


def cpu_computes(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for products in `dtype`: without them they are emulated, slowly."""
    if dtype == torch.bfloat16:
        return cpu_has_bf16()
    if dtype == torch.float16:
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True
