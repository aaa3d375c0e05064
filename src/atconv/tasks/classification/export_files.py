"""The files of an export: written in a format, compared with the model, and put in place together."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from atconv import deploy

__all__ = ["DESCRIPTION", "Call", "Written", "staged", "write_all"]

logger = logging.getLogger(__name__)

Call = Callable[[Tensor], Tensor]

DESCRIPTION = "export.json"
_TOLERANCE = 1e-4
_TRACE_SIZE = 128  # pixels


class Format(NamedTuple):
    suffix: str
    write: Callable[..., Path]
    open: Callable[[Path], Call]


_FORMATS = {
    "onnx": Format(".onnx", deploy.export_onnx, deploy.open_onnx),
    "torch": Format(".pt2", deploy.export_torch, deploy.open_torch),
    "aoti": Format("-aoti.pt2", deploy.export_aoti, deploy.open_aoti),
}


@dataclass(frozen=True)
class Written:
    """A file that was written and compared with the model."""

    path: Path
    accepts: str
    call: Call
    error: float | None


def write_all(
    folded: nn.Module, model: nn.Module, format: str, images: Tensor, folder: Path, opset: deploy.Opset = 20
) -> list[Written]:
    """The files of a format, each compared with the model."""
    suffix, write, _ = _FORMATS[format]
    if format == "onnx":
        write = functools.partial(write, opset=opset)
    path = folder / f"model{suffix}"
    batch, channels, height, width = images.shape
    logger.info("writing %s", path.name)
    try:
        # Traced where no map is one position high or wide, which would become a constant.
        traced = (2, channels, _TRACE_SIZE, _TRACE_SIZE + 32)
        write(folded, path, torch.randn(traced), "any")
        _check(path, "any batch and size", format, model, [traced])
        written = _check_sizes(path, format, model, (channels, height, width))
    except deploy.SizeError as error:
        logger.info("%s\nwriting it for %d × %d only", error, height, width)
        write(folded, path, torch.randn(2, channels, height, width), "batch")
        shapes = [(count, channels, height, width) for count in (1, 3)]
        written = _check(path, f"any batch of {height} × {width}", format, model, shapes)
    if format != "onnx":
        return [written]
    fixed = folder / f"model-batch{batch}.onnx"
    logger.info("writing %s", fixed.name)
    write(folded, fixed, images, "fixed")
    accepts = f"{batch} of {height} × {width}"
    return [written, _check(fixed, accepts, format, model, [(batch, channels, height, width)])]


def _check_sizes(path: Path, format: str, model: nn.Module, shape: tuple[int, int, int]) -> Written:
    """Compare a file, which is right at the traced size, with the model at others.

    Raises:
        SizeError: it is wrong there.
    """
    channels, height, width = shape
    shapes = [(1, channels, height, width), (3, channels, height + 5, width + 37)]
    try:
        written = _check(path, "any batch and size", format, model, shapes)
    except RuntimeError as error:
        raise deploy.SizeError(str(error)) from error
    size = _min_size(written.call, model, channels)
    return (
        written if size == 1 else replace(written, accepts=f"any batch, {size} pixels or more high and wide")
    )


def _min_size(call: Call, model: nn.Module, channels: int) -> int:
    """Minimum height and width of images: torch.export assumes that no map has a single position."""
    for size in (1, 2, 3, 5, 9, 17, 33, 65):
        with suppress(Exception):  # each runtime has its own types
            if deploy.largest_error(call, model, [(1, channels, size, size)]) <= _TOLERANCE:
                return size
    return _TRACE_SIZE


def _check(
    path: Path, accepts: str, format: str, model: nn.Module, shapes: list[tuple[int, int, int, int]]
) -> Written:
    """Open a file and compare it with the model on batches of the given shapes (B C H W)."""
    try:
        call = _FORMATS[format].open(path)
        error = deploy.largest_error(call, model, shapes)
    except ImportError:
        raise
    except Exception as problem:  # each runtime has its own types
        reason = str(problem).strip().partition("\n")[0]
        raise RuntimeError(f"{path.name} does not run: {reason}") from problem
    if not error <= _TOLERANCE:
        raise RuntimeError(
            f"{path.name} does not compute what the model does: relative error {error:.1e}, at most "
            f"{_TOLERANCE:.0e} is accepted"
        )
    return Written(path, accepts, call, error)


@contextmanager
def staged(folder: Path, stale: list[Path]) -> Iterator[Path]:
    """A folder to write into, whose files are moved into place after all of them are complete; stale files
    are removed then.

    The old description is removed first and the new one moved last: none ever describes other files.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as name:
        yield Path(name)
        folder.mkdir(exist_ok=True)
        for path in (folder / DESCRIPTION, *stale):
            path.unlink(missing_ok=True)
        for path in sorted(Path(name).iterdir(), key=lambda path: path.name == DESCRIPTION):
            os.replace(path, folder / path.name)
