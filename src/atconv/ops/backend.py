"""Which backend computes the operator's own primitives: PyTorch's operators, or Triton kernels.

`auto` takes what was measured to be faster: PyTorch's operators, until the kernels have been
measured on a GPU.
`triton` takes the kernels wherever they run: on a GPU that Triton compiles for, or in Triton's interpreter
(TRITON_INTERPRET=1), which is for tests. The environment variable ATCONV_BACKEND sets it for a process.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Backend", "get_backend", "set_backend", "use_backend", "uses_triton"]

Backend = Literal["auto", "eager", "triton"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_VALUES = 2**31  # of one sample: positions in it are 32-bit integers


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
    if _backend != "triton" or x.dtype not in _DTYPES:
        return False
    # Files hold PyTorch's operators alone. The flag: up to 2.11, is_exporting() is true in torch.compile too.
    if torch.compiler._is_exporting_flag or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return False
    if not torch.compiler.is_compiling() and _is_transformed():
        return False
    runs = x.is_cuda or (x.device.type == "cpu" and _INTERPRETED)
    return runs and x.numel() > 0 and x.numel() // x.shape[0] < _MAX_VALUES


def _is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which know PyTorch's operators alone."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _checked(name: str, source: str = "the backend") -> Backend:
    if name not in get_args(Backend):
        raise ValueError(f"{source} is one of {', '.join(get_args(Backend))}, got {name!r}")
    if name == "triton" and importlib.util.find_spec("triton") is None:
        raise ImportError(f"{source} is triton, which is not installed: pip install triton, or take auto")
    return name  # type: ignore[return-value]  # checked above


_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_backend: Backend = _checked(os.environ.get("ATCONV_BACKEND", "auto"), "ATCONV_BACKEND")
