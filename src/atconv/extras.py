"""Packages that an extra brings: where one is missing, the error says how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PACKAGES", "name_missing_extra"]

PACKAGES = {
    "train": (
        "accelerate", "docstring_parser", "filelock", "jsonargparse", "lmdb", "matplotlib", "rich", "scipy",
        "sklearn", "tensorboard", "yaml",
    ),
    "generation": ("diffusers", "torch_fidelity", "torchdiffeq"),
    "dense": ("faster_coco_eval", "segmentation_models_pytorch", "torchmetrics"),
    "heif": ("pillow_heif",),
    "tables": ("pyarrow",),
    "app": ("gradio", "packaging", "safehttpx"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("nncf", "openvino"),
    "executorch": ("executorch",),
    "coreml": ("coremltools",),
}  # fmt: skip
"""modules that an extra brings, by its name"""


@contextmanager
def name_missing_extra() -> Iterator[None]:
    """Name the extra that brings a module which cannot be imported inside. Also a decorator.

    Raises:
        ModuleNotFoundError: with the line that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = next((extra for extra, modules in PACKAGES.items() if module in modules), None)
        if extra is None or "pip install" in str(error):
            raise
        line = f"{module} is missing: pip install 'atconv[{extra}]'"
        raise ModuleNotFoundError(line, name=error.name) from error
