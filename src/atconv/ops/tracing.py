"""Whether a function is traced, and with what as symbols."""

from __future__ import annotations

import torch

__all__ = ["is_exporting", "is_symbolic"]


def is_symbolic() -> bool:
    """Whether batch, height and width are symbols: under torch.compile, torch.export, torch.jit.trace and the
    ONNX exporters."""
    if torch.jit.is_scripting():
        return False
    else:  # noqa: RET505  (TorchScript compiles what follows a return)
        return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()


def is_exporting() -> bool:
    """Under torch.export, torch.jit.trace and the ONNX exporters: files hold PyTorch's operators alone."""
    if torch.jit.is_scripting():
        return False
    else:  # noqa: RET505  (as above)
        # The flag: up to 2.11, torch.compiler.is_exporting() is true in torch.compile too.
        flag: bool = torch.compiler._is_exporting_flag
        return flag or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()
