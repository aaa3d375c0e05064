"""AttNet-T2 as files: ONNX Runtime, OpenVINO, torch.export and AOTInductor, compared with eager PyTorch."""

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
from atconv.deploy.timing import median_seconds
from machine import dtypes
from models import attnet, images

__all__ = ["deployed"]

Call = Callable[[Tensor], Tensor]
BATCHES = (1, 8)
COARSE = ("ONNX Runtime, int8", "OpenVINO, bfloat16")


def deployed() -> list[dict[str, Any]]:
    """Seconds of batches of 1 and 8 in every format, interleaved; and seconds to write the file."""
    model = deploy.fold(attnet())
    rows: dict[str, dict[str, Any]] = {"PyTorch, folded": {"file": "PyTorch, folded"}}
    calls: dict[str, Call] = {"PyTorch, folded": model}
    with tempfile.TemporaryDirectory() as name:
        for form, (write, read) in _formats().items():
            path = Path(name) / form.replace(" ", "-").replace(",", "")
            path = path.with_suffix(".pt2" if form in ("torch.export", "AOTInductor") else ".onnx")
            started = time.perf_counter()
            write(model, path)
            rows[form] = {"file": form, "writing": time.perf_counter() - started}
            calls[form] = read(path)
            rows[form] |= _checked(form, calls[form], model)
        seconds = {batch: _seconds(calls, batch) for batch in BATCHES}
    return [
        {**rows[form], "batch": batch, "seconds": taken}
        for batch, by_form in seconds.items()
        for form, taken in by_form.items()
    ]


@torch.inference_mode()
def _seconds(calls: dict[str, Call], batch: int) -> dict[str, float]:
    fitting = {form: call for form, call in calls.items() if batch in _batches(form)}
    return median_seconds({form: partial(call, images(batch)) for form, call in fitting.items()})


def _batches(form: str) -> tuple[int, ...]:
    """Those that a format takes."""
    return tuple(batch for batch in BATCHES if "fixed" not in form or form.endswith(f" {batch}"))


@torch.inference_mode()
def _checked(form: str, call: Call, model: Call) -> dict[str, float]:
    """Compare a file's answers with the model's."""
    shapes = [(batch, 3, 224, 224) for batch in _batches(form)]
    if form in COARSE:  # the same network, coarser: random weights blow rounding up
        for shape in shapes:
            x = images(shape[0])
            assert torch.cosine_similarity(call(x), model(x)).min() > 0.5, form
        return {}
    error = deploy.largest_error(call, model, shapes)
    assert error < 1e-4, (form, error)
    return {"error": error}


def _formats() -> dict[str, tuple[Callable[[Any, Path], object], Callable[[Path], Call]]]:
    """How each is written and opened."""
    pair = images(2)

    def write_int8(model: Any, path: Path) -> None:
        plain = deploy.export_onnx(model, path.with_name("float.onnx"), pair)
        deploy.quantize_onnx(plain, path, images(16).split(4))

    def write_any(model: Any, path: Path) -> None:
        deploy.export_onnx(model, path, pair)

    def write_fixed(batch: int, model: Any, path: Path) -> None:
        deploy.export_onnx(model, path, images(batch), "fixed")

    formats: dict[str, tuple[Callable[[Any, Path], object], Callable[[Path], Call]]] = {
        "ONNX Runtime, any size": (write_any, deploy.open_onnx),
        **{
            f"ONNX Runtime, fixed to {batch}": (partial(write_fixed, batch), deploy.open_onnx)
            for batch in BATCHES
        },
        "ONNX Runtime, int8": (write_int8, deploy.open_onnx),
        "torch.export": (lambda model, path: deploy.export_torch(model, path, pair), deploy.open_torch),
        "AOTInductor": (lambda model, path: deploy.export_aoti(model, path, pair), deploy.open_aoti),
    }
    if importlib.util.find_spec("openvino") is not None:
        formats["OpenVINO, any size"] = (write_any, partial(_open_openvino, precision="f32"))
        if torch.bfloat16 in dtypes():  # then it is what OpenVINO takes by default
            formats["OpenVINO, bfloat16"] = (write_any, partial(_open_openvino, precision="bf16"))
    else:
        print("OpenVINO is left out: pip install openvino")
    return formats


def _open_openvino(path: Path, precision: str) -> Call:
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = openvino.compile_model(str(path), "CPU", options)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])
