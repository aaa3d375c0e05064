"""Which backend computes the operator's own primitives: PyTorch's operators, or Triton kernels.

`auto` takes PyTorch's operators; for inference on NVIDIA's GPUs from Ampere on, where Triton and a C
compiler are installed, the kernels that tests on an H100 found right. `triton` takes the kernels wherever
they run, for training too: on any GPU that Triton compiles for, or in Triton's interpreter
(TRITON_INTERPRET=1), which is for tests. The environment variable ATCONV_BACKEND sets it for a process.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from atconv.ops.tracing import is_exporting

__all__ = [
    "Backend",
    "addressable",
    "autocast_dtype",
    "get_backend",
    "is_recorded",
    "set_backend",
    "use_backend",
    "uses_triton",
    "uses_untried_triton",
]

Backend = Literal["auto", "eager", "triton"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_OFFSET = 2**31  # within a sample: offsets are 32-bit integers there


def get_backend() -> Backend:
    """The backend in force."""
    return _backend


def set_backend(name: Backend) -> None:
    """Choose the backend for this process.

    Raises:
        ValueError: there is no such backend.
        ImportError: `triton` is asked for and not installed.
    """
    global _backend
    _backend = _checked(name)


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Choose the backend for a block. Raises as `set_backend` does."""
    before = get_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def uses_triton(x: Tensor) -> bool:
    """Whether the Triton kernels compute a function of this map."""
    if _backend == "eager" or x.dtype not in _DTYPES:
        return False
    if x.device.type == "cpu":
        runs = _INTERPRETED and _backend == "triton"
    else:
        runs = x.is_cuda and (_backend == "triton" or _is_tried(x.device))
    if not runs or is_exporting() or _is_transformed():
        return False
    return x.numel() > 0 and _fits(x)


def uses_untried_triton(x: Tensor) -> bool:
    """Whether Triton kernels that no GPU has run yet compute it: only where the backend is `triton`. To be
    dropped when `make gpu` has found them right and faster."""
    return _backend == "triton" and isinstance(x, Tensor) and uses_triton(x)


def addressable(x: Tensor) -> Tensor:
    """The map as it lies, or a copy whose offsets 32 bits hold. Gradients come with strides of their own."""
    return x if _fits(x) else x.contiguous()


def _fits(x: Tensor) -> bool:
    """Whether 32 bits hold the offsets within a sample, of this map and of one of its shape."""
    span = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    return max(span, x.numel() // x.shape[0]) < _MAX_OFFSET


def _is_tried(device: torch.device) -> bool:
    """Whether `auto` takes the kernels on a GPU. Gradients wait until `make gpu` has found them right."""
    if torch.is_grad_enabled() or not _COMPILES or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_properties(device).major >= 8


def is_recorded(*inputs: Tensor | None) -> bool:
    """Whether a kernel must be called as an operator of torch's: for gradients, compilers, tensors of other
    classes and those that torch negates when they are read. Calling it as a function takes less time."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return True
    return any(type(t) not in (Tensor, nn.Parameter) or t.is_neg() for t in inputs if t is not None)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which autocast, where it is on, has PyTorch multiply this tensor; else its own."""
    device = x.device.type
    on = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if on else x.dtype


def _is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which know PyTorch's operators alone."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _checked(name: str, source: str = "the backend") -> Backend:
    if name not in get_args(Backend):
        raise ValueError(f"{source} is one of {', '.join(get_args(Backend))}, got {name!r}")
    if name == "triton" and not _INSTALLED:
        raise ImportError(f"{source} is triton, which is not installed: pip install triton, or take auto")
    return name  # type: ignore[return-value]  # checked above


_INSTALLED = importlib.util.find_spec("triton") is not None
# Triton builds what starts a kernel with a C compiler, which slim images for deployment lack.
_COMPILES = _INSTALLED and bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")  # as Triton
_backend: Backend = _checked(os.environ.get("ATCONV_BACKEND") or "auto", "ATCONV_BACKEND")
