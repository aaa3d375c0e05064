"""A model as a file that runs without this package: here ONNX, torch.export and AOTInductor. OpenVINO's,
ExecuTorch's and Core ML's files, the web page and int8 have modules of their own; `table.FORMATS` lists all.

Each format has a function that writes the file and one that opens it as a function of tensors, on a CPU: of
images → logits, or of what the model takes and gives.
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
    "Call",
    "Inputs",
    "Opset",
    "SizeError",
    "Sizes",
    "ensure_parent",
    "export_aoti",
    "export_onnx",
    "export_torch",
    "largest_error",
    "log_level",
    "open_aoti",
    "open_onnx",
    "open_torch",
    "quiet",
    "relative_error",
    "trace",
    "unpack",
]

Call = Callable[..., Any]
"""What a file is opened as: tensors → a tensor, or a tuple of them where the model gives several"""
Inputs = Tensor | tuple[Tensor, ...]
"""What a model takes: images B C H W, or several tensors, all B …"""
Sizes = Literal["any", "batch", "size", "fixed"]
"""What the file accepts: any batch, height and width; any batch of the traced size; the traced batch of any
size; only the traced shape. Height and width are axes of inputs B C H W."""

Opset = Literal[17, 20]
"""Version of ONNX's operators: 20 has GELU; 17 is for older runtimes, GELU becomes its formula."""

_AXES: dict[Sizes, tuple[int, ...]] = {"any": (0, 2, 3), "batch": (0,), "size": (2, 3), "fixed": ()}


class SizeError(ValueError):
    """A model's graph depends on a size that should be dynamic."""


@name_missing_extra()
def export_onnx(
    model: nn.Module,
    path: str | Path,
    inputs: Inputs,
    sizes: Sizes = "any",
    opset: Opset = 20,
    input_names: Sequence[str] = ("images",),
    output_names: Sequence[str] = ("logits",),
) -> Path:
    """Write an ONNX file.

    Args:
        model: in eval mode.
        path: file to write.
        inputs: an example, B > 1 where any batch is accepted.
        sizes: which other shapes the file accepts.
        opset: version of ONNX's operators.
        input_names, output_names: of the model's tensors, in order.

    Returns:
        the file.

    Raises:
        ImportError: onnx or onnxscript is missing.
        SizeError: the model's graph depends on a size that should be dynamic.
        ValueError: the model is in training mode, or has an operator that opset 17 does not.
    """
    path, program = ensure_parent(path), trace(model, inputs, sizes)
    names: Any = {"input_names": list(input_names), "output_names": list(output_names)}
    with quiet():
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


def export_torch(model: nn.Module, path: str | Path, inputs: Inputs, sizes: Sizes = "any") -> Path:
    """Write a .pt2 file, which `torch.export.load(path).module()` opens. As `export_onnx` otherwise.

    Images must be so large that the last map is more than one position high and wide: 33 pixels for a network
    that reduces 32 times.
    """
    path, program = ensure_parent(path), trace(model, inputs, sizes)
    with quiet():
        torch.export.save(program, path)
    return path


def export_aoti(model: nn.Module, path: str | Path, inputs: Inputs, sizes: Sizes = "any") -> Path:
    """Compile to a .pt2 package for this machine's CPU; `torch._inductor.aoti_load_package(path)` opens it.

    The package reads images as contiguous float32 without a check. Compiling needs a C++ compiler, and takes
    a minute or more. As `export_torch` otherwise.

    Raises:
        ValueError: as `export_onnx`.
        FileNotFoundError: there is no C++ compiler.
    """
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    path, program = ensure_parent(path), trace(model, inputs, sizes)
    try:
        with quiet():
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
    names = [each.name for each in session.get_inputs()]

    def call(*inputs: Tensor) -> Any:
        fed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return unpack([torch.from_numpy(output) for output in session.run(None, fed)])

    return call


def open_torch(path: Path) -> Call:
    """A file of `export_torch`."""
    return torch.export.load(path).module()


def open_aoti(path: Path) -> Call:
    """A package of `export_aoti`."""
    with quiet():
        package = torch._inductor.aoti_load_package(str(path))
    return lambda *inputs: package(*(each.contiguous() for each in inputs))


def unpack(outputs: Sequence[Tensor]) -> Any:
    """The one output of a file, or a tuple of several."""
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


@torch.inference_mode()
def largest_error(call: Call, model: Call, shapes: Sequence[tuple[int, int, int, int]]) -> float:
    """The largest `relative_error` on random images of the given shapes (B C H W)."""
    errors = []
    for seed, shape in enumerate(shapes):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        errors.append(relative_error(call(images), model(images)))
    return max(errors)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value; infinite where one is not finite or has
    another shape."""
    if actual.shape != expected.shape:
        return math.inf
    error = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    return error if math.isfinite(error) else math.inf


def ensure_parent(path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def trace(model: nn.Module, inputs: Inputs, sizes: Sizes) -> ExportedProgram:
    """The graph of a model. Raises as `export_onnx` does."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    if model.training:
        raise ValueError("an export takes a model in eval mode. Call model.eval()")
    if sizes in ("any", "batch") and len(inputs[0]) < 2:
        raise ValueError("an export for any batch takes an example of 2 images or more: 1 would be fixed")
    axes = _AXES[sizes]
    dynamic = tuple({axis: Dim.DYNAMIC for axis in axes if axis < each.ndim} for each in inputs)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(model, inputs, dynamic_shapes=dynamic if axes else None)
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
def quiet() -> Iterator[None]:
    """Without the warnings that torch's exporters give about torch itself, and without handlers that they add
    to the root of all logs, which would show each of our lines twice."""
    handlers = logging.root.handlers[:]
    with log_level("torch", logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.root.handlers[:] = handlers
