"""Whether batch, height and width are symbols."""

from __future__ import annotations

import torch

__all__ = ["is_symbolic"]


def is_symbolic() -> bool:
    """Under torch.compile, torch.export, torch.jit.trace and the ONNX exporters."""
    if torch.jit.is_scripting():
        return False
    else:  # noqa: RET505  (TorchScript compiles what follows a return)
        return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
