"""A model as OpenVINO's intermediate representation: the graph as .xml, the weights as .bin."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atconv.deploy.formats import Call, Inputs, Sizes, ensure_parent, export_onnx, log_level, unpack
from atconv.extras import name_missing_extra

__all__ = ["export_openvino", "open_openvino", "quantize_openvino"]


@name_missing_extra()
def export_openvino(
    model: nn.Module,
    path: str | Path,
    inputs: Inputs,
    sizes: Sizes = "any",
    input_names: Sequence[str] = ("images",),
    output_names: Sequence[str] = ("logits",),
    fp16: bool = False,
) -> Path:
    """Write an .xml file, and a .bin file of the same name next to it; by way of ONNX.

    Args:
        fp16: store the weights in half precision: half the size. What is computed in is the runtime's choice.

    As `export_onnx` otherwise.

    Raises:
        ValueError: OpenVINO does not read this version's graph; seen with torch 2.9.
    """
    import openvino

    path = ensure_parent(path)
    with tempfile.TemporaryDirectory() as folder:
        onnx = export_onnx(
            model,
            Path(folder) / "model.onnx",
            inputs,
            sizes,
            input_names=input_names,
            output_names=output_names,
        )
        try:
            graph = openvino.Core().read_model(onnx)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].lstrip("- ")
            raise ValueError(
                f"OpenVINO does not read the graph that torch {torch.__version__} writes ({reason}): a newer "
                "torch may write one that it does"
            ) from error
        openvino.save_model(graph, path, compress_to_fp16=fp16)
    return path


@name_missing_extra()
def open_openvino(path: Path, threads: int | None = None, precision: str = "f32") -> Call:
    """A file of `export_openvino` on the CPU, with torch's number of threads or another.

    Args:
        precision: what it computes in: f32, or bf16 where the processor has it.
    """
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", options)

    def call(*inputs: Tensor) -> Any:
        outputs = compiled([tensor.numpy() for tensor in inputs])
        return unpack([torch.from_numpy(outputs[i].copy()) for i in range(len(compiled.outputs))])

    return call


@name_missing_extra()
def quantize_openvino(path: Path, out: Path, batches: Iterable[Tensor]) -> Path:
    """Quantize a file of `export_openvino` by NNCF: as `quantize_onnx`.

    Raises:
        ImportError: openvino or nncf is missing.
        ValueError: no batches.
    """
    os.environ.setdefault("NNCF_CI", "1")  # otherwise it reports its use over the network
    import nncf
    import openvino

    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("int8 takes images to calibrate on: none were given")
    images = [batch.numpy() for batch in chain([first], batches)]
    model = openvino.Core().read_model(path)
    with log_level("nncf", logging.ERROR):
        quantized = nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=_products_of_activations(model)),
            # It takes the bias of kernels, one for each position, for one of channels.
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
        )
    openvino.save_model(quantized, out, compress_to_fp16=False)
    return out


def _products_of_activations(model: Any) -> list[str]:
    """Names of products that are not of activations and weights, in this order: they make the kernels, which
    stay in float32. Where the weights come first, OpenVINO takes a scale for each row for one of channels."""
    products = [node for node in model.get_ops() if node.get_type_name() == "MatMul"]
    return [
        node.get_friendly_name()
        for node in products
        if node.input_value(1).get_node().get_type_name() != "Constant"
    ]
