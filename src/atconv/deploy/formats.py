"""A model as a file that runs without this package: ONNX, torch.export, AOTInductor.

Each format has a function that writes the file and one that opens it as a function images → logits, on a CPU.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from atconv.deploy.opset import to_opset_17
from atconv.extras import name_missing_extra

__all__ = [
    "Opset",
    "SizeError",
    "Sizes",
    "export_aoti",
    "export_onnx",
    "export_torch",
    "largest_error",
    "log_level",
    "open_aoti",
    "open_onnx",
    "open_torch",
]

Call = Callable[[Tensor], Tensor]
Sizes = Literal["any", "batch", "fixed"]
"""What the file accepts: any batch, height and width; any batch of the traced size; only the traced shape."""

Opset = Literal[17, 20]
"""Version of ONNX's operators: 20 has GELU; 17 is for older runtimes, GELU becomes its formula."""

_BATCH, _HEIGHT, _WIDTH = 0, 2, 3


class SizeError(ValueError):
    """A model's graph depends on a size that should be dynamic."""


@name_missing_extra()
def export_onnx(
    model: nn.Module, path: str | Path, images: Tensor, sizes: Sizes = "any", opset: Opset = 20
) -> Path:
    """Write an ONNX file, with input "images" and output "logits".

    Args:
        model: in eval mode.
        path: file to write.
        images: an example, B C H W, B > 1 unless sizes are fixed.
        sizes: which other shapes the file accepts.
        opset: version of ONNX's operators.

    Returns:
        the file.

    Raises:
        ImportError: onnx or onnxscript is missing.
        SizeError: the model's graph depends on a size that should be dynamic.
        ValueError: the model is in training mode, or has an operator that opset 17 does not.
    """
    path, program = _ensure_parent(path), _trace(model, images, sizes)
    names: Any = {"input_names": ["images"], "output_names": ["logits"]}
    with _quiet():
        from onnxscript import optimizer

        # Torch's own optimization also looks for patterns, in time that grows with the square of the graph:
        # minutes for a large network, and ONNX Runtime looks for them when it opens the file.
        onnx: Any = torch.onnx.export(
            program, (), dynamo=True, verbose=False, optimize=False, opset_version=max(opset, 18), **names
        )
        optimizer.fold_constants(onnx.model)
        optimizer.remove_unused_nodes(onnx.model)
        onnx.save(path)
    if opset == 17:
        to_opset_17(path)
    return path


def export_torch(model: nn.Module, path: str | Path, images: Tensor, sizes: Sizes = "any") -> Path:
    """Write a .pt2 file, which `torch.export.load(path).module()` opens. As `export_onnx` otherwise.

    Images must be so large that the last map is more than one position high and wide: 33 pixels for a network
    that reduces 32 times.
    """
    path, program = _ensure_parent(path), _trace(model, images, sizes)
    with _quiet():
        torch.export.save(program, path)
    return path


def export_aoti(model: nn.Module, path: str | Path, images: Tensor, sizes: Sizes = "any") -> Path:
    """Compile to a .pt2 package for this machine's CPU; `torch._inductor.aoti_load_package(path)` opens it.

    The package reads images as contiguous float32 without a check. Compiling needs a C++ compiler, and takes
    a minute or more. As `export_torch` otherwise.

    Raises:
        ValueError: as `export_onnx`.
        FileNotFoundError: there is no C++ compiler.
    """
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    path, program = _ensure_parent(path), _trace(model, images, sizes)
    try:
        with _quiet():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except (InvalidCxxCompiler, InductorError) as error:
        if InvalidCxxCompiler.__name__ not in str(error) and not isinstance(error, InvalidCxxCompiler):
            raise
        raise FileNotFoundError(
            "aoti needs a C++ compiler (Debian: apt install g++), or name one in CXX"
        ) from error
    return path


@name_missing_extra()
def open_onnx(path: Path, threads: int | None = None) -> Call:
    """An ONNX file in onnxruntime, on the CPU with torch's number of threads or another."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised, so their log is not needed
    # Threads that spin while they wait take the cores from whatever else the process does.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def open_torch(path: Path) -> Call:
    """A file of `export_torch`."""
    return torch.export.load(path).module()


def open_aoti(path: Path) -> Call:
    """A package of `export_aoti`."""
    with _quiet():
        package = torch._inductor.aoti_load_package(str(path))
    return lambda images: package(images.float().contiguous())


@torch.inference_mode()
def largest_error(call: Call, model: Call, shapes: Sequence[tuple[int, int, int, int]]) -> float:
    """The largest difference of outputs on random images of the given shapes (B C H W), relative to the
    largest output; infinite where an output is not finite or has another shape."""
    errors = []
    for seed, shape in enumerate(shapes):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        expected = model(images)
        actual = call(images)
        error = torch.tensor(math.inf)
        if actual.shape == expected.shape:
            error = (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
        errors.append(float(error) if error.isfinite() else math.inf)
    return max(errors)


def _ensure_parent(path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _trace(model: nn.Module, images: Tensor, sizes: Sizes) -> ExportedProgram:
    if model.training:
        raise ValueError("an export takes a model in eval mode. Call model.eval()")
    if sizes != "fixed" and len(images) < 2:
        raise ValueError("an export for any batch takes an example of 2 images or more: 1 would be fixed")
    axes = {"any": (_BATCH, _HEIGHT, _WIDTH), "batch": (_BATCH,), "fixed": ()}[sizes]
    dynamic = (dict.fromkeys(axes, Dim.DYNAMIC),) if axes else None
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(model, (images,), dynamic_shapes=dynamic)
    except Exception as error:  # torch names its reasons in many types
        reason = str(error).strip().partition("\n")[0]
        kind = ValueError if sizes == "fixed" else SizeError
        raise kind(f"{type(model).__name__} does not export for sizes={sizes!r}: {reason}") from error


@contextmanager
def log_level(name: str | None, level: int) -> Iterator[None]:
    """A logger's level for a while; None is the root logger."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that torch's exporters give about torch itself."""
    with log_level("torch", logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
