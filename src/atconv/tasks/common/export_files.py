"""The files of an export: written in a format, compared with the model, and put in place together."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from atconv.deploy import FORMATS, Call, SizeError
from atconv.tasks.common.exporter import Exporter, Written

__all__ = ["DESCRIPTION", "staged", "write_all"]

logger = logging.getLogger(__name__)

DESCRIPTION = "export.json"

Size = tuple[int, int, int]
"""batch, height and width"""


def write_all(
    exporter: Exporter, format: str, batch_size: int, folder: Path, **options: Any
) -> list[Written]:
    """The files of a format, each compared with the model.

    Args:
        batch_size: of a file for one batch alone.
        options: of the format, such as `opset`.
    """
    entry = FORMATS[format]
    path = folder / f"model{entry.suffix}"
    _, height, width = exporter.shape
    writer = _Writer(exporter, format, options)
    if not entry.dynamic or (entry.companions and exporter.fixed_batch):
        accepts = f"one image of {height} × {width}" if batch_size == 1 else ""
        return [writer.write(path, "fixed", (batch_size, height, width), accepts)]
    count, batch = (2, "any batch") if exporter.any_batch else (1, "one image")
    try:
        writer.write(path, "any" if exporter.any_batch else "size", (count, *exporter.traced))
        written = writer.check_sizes(path, batch)
    except SizeError as error:
        if entry.companions:  # a page gives images as they are
            raise
        logger.info("%s\nwriting it for %d × %d only", error, height, width)
        sizes = [(each, height, width) for each in ((1, 3) if exporter.any_batch else (1,))]
        fixed = "batch" if exporter.any_batch else "fixed"
        written = writer.write(path, fixed, (count, height, width), f"{batch} of {height} × {width}", sizes)
    if format != "onnx" or not exporter.fixed_batch:
        return [written]
    fixed_path = folder / f"model-batch{batch_size}.onnx"
    return [written, writer.write(fixed_path, "fixed", (batch_size, height, width))]


@dataclass(frozen=True)
class _Writer:
    exporter: Exporter
    format: str
    options: dict[str, Any]

    def write(
        self,
        path: Path,
        sizes: str,
        example: Size,
        accepts: str = "",
        checked: Sequence[Size] = (),
    ) -> Written:
        """Write a file, and compare it with the model at the size of the example or at others."""
        logger.info("writing %s", path.name)
        self.exporter.write(self.format, path, self.exporter.inputs(*example), sizes, **self.options)
        batch, height, width = example
        written = self.check(path, accepts or f"{batch} of {height} × {width}", checked or [example])
        return replace(written, size=(height, width) if sizes in ("fixed", "batch") else None)

    def check_sizes(self, path: Path, batch: str) -> Written:
        """Compare a file, which is right at the traced size, with the model at others.

        Raises:
            SizeError: it is wrong there.
        """
        (_, height, width), step = self.exporter.shape, self.exporter.step
        other = (3 if self.exporter.any_batch else 1, height + 5 * step, width + 37 * step)
        any_size = f"{batch} and size" if self.exporter.any_batch else f"{batch} of any size"
        if step > 1:
            any_size += f" that {step} divides"
        try:
            written = self.check(path, any_size, [(1, height, width), other])
        except RuntimeError as error:
            raise SizeError(str(error)) from error
        size = self._min_size(written.call)
        if size == self.exporter.step:
            return written
        return replace(written, accepts=f"{batch}, {size} pixels or more high and wide")

    def _min_size(self, call: Call | None) -> int:
        """Minimum height and width of images: torch.export assumes that no map has a single position."""
        for size in (self.exporter.step * each for each in (1, 2, 3, 5, 9, 17, 33, 65)):
            with suppress(Exception):  # each runtime has its own types
                if self._error(call, (1, size, size)) <= self.exporter.tolerance:
                    return size
        return min(self.exporter.traced)

    def check(self, path: Path, accepts: str, sizes: Sequence[Size]) -> Written:
        """Open a file and compare it with the model on random inputs of the given sizes."""
        opener = FORMATS[self.format].open
        if opener is None:
            logger.info("%s does not run on this system: it is not compared with the model", path.name)
            return Written(path, accepts, None, None)
        try:
            call = opener(path)
            error = max(self._error(call, size) for size in sizes)
        except ImportError:
            raise
        except Exception as problem:  # each runtime has its own types
            reason = str(problem).strip().partition("\n")[0]
            raise RuntimeError(f"{path.name} does not run: {reason}") from problem
        if not error <= self.exporter.tolerance:
            raise RuntimeError(
                f"{path.name} does not compute what the model does: relative error {error:.1e}, at most "
                f"{self.exporter.tolerance:.0e} is accepted"
            )
        return Written(path, accepts, call, error)

    @torch.inference_mode()
    def _error(self, call: Any, size: Size) -> float:
        return self.exporter.error(call, self.exporter.inputs(*size))


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
            _remove(path)
        for path in sorted(Path(name).iterdir(), key=lambda path: path.name == DESCRIPTION):
            if path.is_dir():
                _remove(folder / path.name)
            os.replace(path, folder / path.name)


def _remove(path: Path) -> None:
    """A file of an earlier export: Core ML's is a folder, OpenVINO's has its weights in another."""
    if (path / "Manifest.json").is_file():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if path.suffix == ".xml":
        path.with_suffix(".bin").unlink(missing_ok=True)
