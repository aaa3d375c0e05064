"""The formats that models are written in. A new one is one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atconv.deploy.formats import (
    Call,
    export_aoti,
    export_onnx,
    export_torch,
    open_aoti,
    open_onnx,
    open_torch,
)
from atconv.deploy.mobile import export_coreml, export_executorch, open_executorch
from atconv.deploy.openvino_format import export_openvino, open_openvino, quantize_openvino
from atconv.deploy.quantize import quantize_onnx
from atconv.deploy.web import page_files

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    suffix: str
    """of the file's name, behind "model\""""
    write: Callable[..., Path]
    """(model, path, inputs, sizes, **options) → the file, as `export_onnx`"""
    open: Callable[[Path], Call] | None
    """the file as a function, on this machine's CPU; None where it does not run here"""
    options: tuple[str, ...] = ()
    """what `write` takes besides"""
    dynamic: bool = True
    """whether batch, height and width may be left open; otherwise it takes one image"""
    quantize: Callable[..., Path] | None = None
    """(file, file to write, batches) → the same in int8"""
    folder: str = ""
    """below RUN/export, of a format whose files stand by themselves"""
    companions: Callable[[str | None], list[Path]] | None = None
    """(folder of a runtime, if not the usual one) → files that go with the model"""


_NAMES = ("input_names", "output_names")

FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", export_onnx, open_onnx, (*_NAMES, "opset"), quantize=quantize_onnx),
    "web": Format(".onnx", export_onnx, open_onnx, (*_NAMES, "opset"), folder="web", companions=page_files),
    "torch": Format(".pt2", export_torch, open_torch),
    "aoti": Format("-aoti.pt2", export_aoti, open_aoti),
    "openvino": Format(".xml", export_openvino, open_openvino, (*_NAMES, "fp16"), quantize=quantize_openvino),
    "executorch": Format(".pte", export_executorch, open_executorch, dynamic=False),
    "coreml": Format(".mlpackage", export_coreml, None, (*_NAMES, "fp16"), dynamic=False),
}
