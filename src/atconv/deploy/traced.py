"""Models whose graph depends on values, such as detectors, as ONNX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from atconv.deploy.formats import Opset, ensure_parent, quiet
from atconv.extras import name_missing_extra

__all__ = ["export_onnx_traced"]


@name_missing_extra()
def export_onnx_traced(
    model: nn.Module,
    path: str | Path,
    inputs: tuple[Tensor, ...],
    dynamic_axes: Mapping[str, Mapping[int, str]],
    opset: Opset = 20,
    input_names: Sequence[str] = ("images",),
    output_names: Sequence[str] = ("boxes",),
) -> Path:
    """Write an ONNX file of what a model does with an example.

    torch.export, which `export_onnx` stands on, rejects torchvision's detectors: in non-maximum suppression
    the number of boxes decides what is computed. The older exporter writes the path that the example takes,
    which torchvision has made right for any image.

    Args:
        model: in eval mode; returns a tuple of tensors.
        path: file to write.
        inputs: an example.
        dynamic_axes: names of the axes that are open, by input and output.
        opset: version of ONNX's operators.
        input_names, output_names: of the model's tensors, in order.

    Returns:
        the file.

    Raises:
        ImportError: onnx is missing.
    """
    path = ensure_parent(path)
    with torch.no_grad(), quiet():
        torch.onnx.export(
            model,
            inputs,
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_axes={name: dict(axes) for name, axes in dynamic_axes.items()},
        )
    return path
