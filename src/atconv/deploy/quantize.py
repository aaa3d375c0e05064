"""Eight-bit ONNX: products and convolutions with learned weights in int8, the rest in float32."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from torch import Tensor

from atconv.deploy.formats import log_level
from atconv.extras import name_missing_extra

__all__ = ["quantize_onnx"]

_QUANTIZED_OPS = ["Conv", "MatMul", "Gemm"]


@name_missing_extra()
def quantize_onnx(path: Path, out: Path, batches: Iterable[Tensor]) -> Path:
    """Quantize an ONNX file statically: weights per channel, in seven of int8's bits, and uint8 activations.

    Args:
        path: from `export_onnx`.
        out: file to write.
        batches: calibration images as the model takes them, B C H W: some hundred real ones.

    Returns:
        the file.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: no batches.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("int8 takes images to calibrate on: none were given")
    remaining = chain([first], batches)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, object] | None:
            images = next(remaining, None)
            return None if images is None else {"images": images.numpy()}

    # onnxruntime logs a recommendation of the pre-processing that has been done.
    with log_level(None, logging.ERROR), tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(out),
            Reader(),
            op_types_to_quantize=_QUANTIZED_OPS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_products_of_activations(prepared),
            reduce_range=True,  # sums of full int8 products saturate on x86 CPUs without VNNI
        )
    return out


def _products_of_activations(path: Path) -> list[str]:
    """Names of products whose second factor is no weight: they make the kernels, which stay in float32."""
    import onnx

    graph = onnx.load(str(path)).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
