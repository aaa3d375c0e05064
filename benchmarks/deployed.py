"""AttNet-T2 and ConvNeXt-T as files of every format that runs here, compared with eager PyTorch."""

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
from models import OTHERS, attnet, images, other

__all__ = ["deployed"]

Call = Callable[[Tensor], Tensor]
BATCHES = (1, 8)
COARSE = ("ONNX Runtime, int8", "OpenVINO, bfloat16", "OpenVINO, int8")
EAGER = "PyTorch"


def deployed() -> list[dict[str, Any]]:
    """Seconds of batches of 1 and 8 of both models in every format, interleaved; and seconds to write the
    file."""
    models = {"AttNet-T2": deploy.fold(attnet()), "ConvNeXt-T": other(OTHERS["ConvNeXt-T"])}
    return [row for name, model in models.items() for row in _measured(name, model)]


def _measured(name: str, model: Any) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {EAGER: {"model": name, "file": EAGER}}
    calls: dict[str, Call] = {EAGER: model}
    with tempfile.TemporaryDirectory() as folder:
        for form, (suffix, write, read) in _formats().items():
            path = (Path(folder) / form.replace(" ", "-").replace(",", "")).with_suffix(suffix)
            started = time.perf_counter()
            write(model, path)
            rows[form] = {"model": name, "file": form, "writing": time.perf_counter() - started}
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


Write = Callable[[Any, Path], object]
Read = Callable[[Path], Call]


def _formats() -> dict[str, tuple[str, Write, Read]]:
    """Suffix, and how each is written and opened."""
    pair = images(2)

    def write_onnx(model: Any, path: Path) -> None:
        deploy.export_onnx(model, path, pair)

    def write_int8(model: Any, path: Path) -> None:
        plain = deploy.export_onnx(model, path.with_name("float.onnx"), pair)
        deploy.quantize_onnx(plain, path, images(16).split(4))

    def write_fixed(batch: int, model: Any, path: Path) -> None:
        deploy.export_onnx(model, path, images(batch), "fixed")

    formats: dict[str, tuple[str, Write, Read]] = {
        "ONNX Runtime, any size": (".onnx", write_onnx, deploy.open_onnx),
        **{
            f"ONNX Runtime, fixed to {batch}": (".onnx", partial(write_fixed, batch), deploy.open_onnx)
            for batch in BATCHES
        },
        "ONNX Runtime, int8": (".onnx", write_int8, deploy.open_onnx),
        "torch.export": (".pt2", lambda m, path: deploy.export_torch(m, path, pair), deploy.open_torch),
        "AOTInductor": (".pt2", lambda m, path: deploy.export_aoti(m, path, pair), deploy.open_aoti),
    }
    if importlib.util.find_spec("nncf") is None:
        print("OpenVINO is left out: pip install 'atconv[openvino]'")
        return formats

    def write_openvino(model: Any, path: Path) -> None:
        deploy.export_openvino(model, path, pair)

    def write_openvino_int8(model: Any, path: Path) -> None:
        plain = deploy.export_openvino(model, path.with_name("float.xml"), pair)
        deploy.quantize_openvino(plain, path, images(16).split(4))

    formats["OpenVINO"] = (".xml", write_openvino, deploy.open_openvino)
    formats["OpenVINO, int8"] = (".xml", write_openvino_int8, deploy.open_openvino)
    if torch.bfloat16 in dtypes():
        read_bf16 = partial(deploy.open_openvino, precision="bf16")
        formats["OpenVINO, bfloat16"] = (".xml", write_openvino, read_bf16)
    return formats
