"""Deploy a model: fold it, export it to a file, quantize it, and check the file against the model."""

from atconv.deploy.fold import FoldedConvGLU, fold
from atconv.deploy.formats import (
    Call,
    Opset,
    SizeError,
    Sizes,
    export_aoti,
    export_onnx,
    export_torch,
    largest_error,
    open_aoti,
    open_onnx,
    open_torch,
    relative_error,
)
from atconv.deploy.quantize import quantize_onnx
from atconv.deploy.table import FORMATS, Format

__all__ = [
    "FORMATS",
    "Call",
    "FoldedConvGLU",
    "Format",
    "Opset",
    "SizeError",
    "Sizes",
    "export_aoti",
    "export_onnx",
    "export_torch",
    "fold",
    "largest_error",
    "open_aoti",
    "open_onnx",
    "open_torch",
    "quantize_onnx",
    "relative_error",
]
