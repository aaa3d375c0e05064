"""Whether batch, height and width are symbols: under torch.compile, torch.export and the ONNX exporters."""

from __future__ import annotations

import torch

__all__ = ["is_symbolic"]


def is_symbolic() -> bool:
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
