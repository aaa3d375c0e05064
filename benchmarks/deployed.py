"""AttNet-T2 as files: ONNX Runtime, OpenVINO, torch.export and AOTInductor beside eager PyTorch."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atconv import deploy
from atconv.timing import by_turns
from models import attnet, images

__all__ = ["deployed"]

Call = Callable[[Tensor], Tensor]
SIDE = 224


def deployed(batch: int) -> list[dict[str, Any]]:
    """Seconds of a batch in every format, by turns; and seconds that writing the file took."""
    model, x = deploy.fold(attnet()), images(batch)
    rows = {"PyTorch, folded": {"file": "PyTorch, folded"}}
    calls: dict[str, Call] = {"PyTorch, folded": model}
    with tempfile.TemporaryDirectory() as name:
        for told, (write, read) in _formats(batch).items():
            path = Path(name) / told.replace(" ", "-").replace(",", "")
            started = time.perf_counter()
            write(model, path.with_suffix(".pt2" if "torch" in told or "AOT" in told else ".onnx"))
            rows[told] = {"file": told, "writing": time.perf_counter() - started}
            calls[told] = read(path.with_suffix(".pt2" if "torch" in told or "AOT" in told else ".onnx"))
            if "int8" in told:
                _check_int8(calls[told](x), model(x))
            else:
                rows[told]["error"] = deploy.largest_error(calls[told], model, [tuple(x.shape)])
                assert rows[told]["error"] < 1e-4, rows[told]
        with torch.inference_mode():
            seconds = by_turns({told: partial(call, x) for told, call in calls.items()})
    return [{**row, "seconds": seconds[told]} for told, row in rows.items()]


def _formats(batch: int) -> dict[str, tuple[Callable[[Any, Path], object], Callable[[Path], Call]]]:
    """How each is written and opened."""
    example, pair = images(batch), images(max(batch, 2))

    def write_int8(model: Any, path: Path) -> None:
        plain = deploy.export_onnx(model, path.with_name("float.onnx"), pair)
        deploy.quantize_onnx(plain, path, images(16).split(4))

    def write_any(model: Any, path: Path) -> None:
        deploy.export_onnx(model, path, pair)

    found: dict[str, tuple[Callable[[Any, Path], object], Callable[[Path], Call]]] = {
        "ONNX Runtime, any size": (write_any, deploy.open_onnx),
        "ONNX Runtime, fixed batch": (
            lambda model, path: deploy.export_onnx(model, path, example, "fixed"),
            deploy.open_onnx,
        ),
        "ONNX Runtime, int8": (write_int8, deploy.open_onnx),
        "torch.export": (lambda model, path: deploy.export_torch(model, path, pair), deploy.open_torch),
        "AOTInductor": (lambda model, path: deploy.export_aoti(model, path, pair), deploy.open_aoti),
    }
    if importlib.util.find_spec("openvino") is not None:
        found["OpenVINO, any size"] = (write_any, _open_openvino)
    return found


def _check_int8(found: Tensor, expected: Tensor) -> None:
    """It is the same network, coarser: random weights blow rounding up."""
    alike = torch.cosine_similarity(found, expected).min()
    assert alike > 0.5, alike


def _open_openvino(path: Path) -> Call:
    import openvino

    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(str(path), "CPU", threads)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])
