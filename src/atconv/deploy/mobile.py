"""A model as a file for phones: ExecuTorch's for Android, iOS and embedded systems, Apple's Core ML."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atconv.deploy.formats import Call, Inputs, Sizes, ensure_parent, log_level, quiet, trace, unpack
from atconv.extras import name_missing_extra

__all__ = ["export_coreml", "export_executorch", "open_executorch"]


@name_missing_extra()
def export_executorch(model: nn.Module, path: str | Path, inputs: Inputs, sizes: Sizes = "fixed") -> Path:
    """Write a .pte file, whose products and convolutions run on XNNPACK. As `export_onnx` otherwise."""
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

    path = ensure_parent(path)
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # it rejects channels-last weights
    program = trace(model, inputs, sizes)
    with torch.no_grad(), quiet():
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)
    return path


@name_missing_extra()
def open_executorch(path: Path) -> Call:
    """A file of `export_executorch`, in ExecuTorch's runtime on this machine."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method: Any = program.load_method("forward")

    def call(*inputs: Tensor) -> Any:
        outputs = method.execute([tensor.contiguous() for tensor in inputs])
        return unpack([output.clone() for output in outputs])

    call.program = program  # type: ignore[attr-defined]  # its method reads from it
    return call


@name_missing_extra()
def export_coreml(
    model: nn.Module,
    path: str | Path,
    inputs: Inputs,
    sizes: Sizes = "fixed",
    input_names: Sequence[str] = ("images",),
    output_names: Sequence[str] = ("logits",),
    fp16: bool = False,
) -> Path:
    """Write an .mlpackage folder. It runs on Apple's systems alone.

    Args:
        fp16: compute in half precision, as Apple's neural engine does.

    As `export_onnx` otherwise.
    """
    with quiet(), log_level(None, logging.CRITICAL):  # it warns of what it lacks on other systems
        import coremltools

    path = ensure_parent(path)
    bars = redirect_stderr(io.StringIO())  # of its passes
    with torch.no_grad(), quiet(), log_level("coremltools", logging.CRITICAL), bars:
        program = trace(model, inputs, sizes).run_decompositions({})
        precision = coremltools.precision.FLOAT16 if fp16 else coremltools.precision.FLOAT32
        converted = coremltools.convert(
            program,
            outputs=[coremltools.TensorType(name=name) for name in output_names],
            compute_precision=precision,
            minimum_deployment_target=coremltools.target.iOS16,
        )
        converted.save(str(path))
    return path
