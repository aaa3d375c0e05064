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
from atconv.deploy.mobile import export_coreml, export_executorch, open_executorch
from atconv.deploy.openvino_format import export_openvino, open_openvino, quantize_openvino
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
    "export_coreml",
    "export_executorch",
    "export_onnx",
    "export_openvino",
    "export_torch",
    "fold",
    "largest_error",
    "open_aoti",
    "open_executorch",
    "open_onnx",
    "open_openvino",
    "open_torch",
    "quantize_onnx",
    "quantize_openvino",
    "relative_error",
]
