"""Eight-bit ONNX: products and convolutions with learned weights in int8, the rest in float32."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from torch import Tensor

__all__ = ["quantize_onnx"]

_QUANTIZED = ["Conv", "MatMul", "Gemm"]


def quantize_onnx(path: Path, out: Path, batches: Iterable[Tensor]) -> Path:
    """Quantize an ONNX file statically: weights by channel, in seven of int8's bits, and uint8 activations.

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

    given = iter(batches)
    first = next(given, None)
    if first is None:
        raise ValueError("int8 takes images to calibrate on: none were given")
    left = chain([first], given)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, object] | None:
            images = next(left, None)
            return None if images is None else {"images": images.numpy()}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends what is done already
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(out),
                Reader(),
                op_types_to_quantize=_QUANTIZED,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_products_of_activations(prepared),
                reduce_range=True,  # sums of full int8 products saturate on x86 CPUs without VNNI
            )
    finally:
        root.setLevel(level)
    return out


def _products_of_activations(path: Path) -> list[str]:
    """Names of products whose right side is no weight: they make the kernels, which stay in float32."""
    import onnx

    graph = onnx.load(str(path)).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
