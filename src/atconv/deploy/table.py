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
    """whether batch, height and width may be left open"""
    folder: str = ""
    """below RUN/export, of a format whose files stand by themselves"""
    beside: Callable[[str | None], list[Path]] | None = None
    """(folder of a runtime, if not the usual one) → files that lie beside the model, which takes one image"""


_NAMES = ("input_names", "output_names")

FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", export_onnx, open_onnx, (*_NAMES, "opset")),
    "web": Format(
        ".onnx", export_onnx, open_onnx, (*_NAMES, "opset"), dynamic=False, folder="web", beside=page_files
    ),
    "torch": Format(".pt2", export_torch, open_torch),
    "aoti": Format("-aoti.pt2", export_aoti, open_aoti),
}
