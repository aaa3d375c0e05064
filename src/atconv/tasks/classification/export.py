"""A run's model as a file for elsewhere: written, checked against the model, and timed beside it."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from atconv import deploy
from atconv.data.loaders import eval_loader
from atconv.data.splits import Split
from atconv.deploy.timing import ROUNDS, median_seconds
from atconv.engine import run as runs
from atconv.engine.progress import make_table, plain_console, track
from atconv.engine.run import Run
from atconv.io import file_digest
from atconv.models.attnet import AttNet
from atconv.tasks.classification.config import read_config
from atconv.tasks.classification.evaluation import find_side, predict_loader

__all__ = ["export"]

Call = Callable[[Tensor], Tensor]

_DESCRIPTION = "export.json"
_TOLERANCE = 1e-4
_LARGE = 128  # pixels
_WRITE = {"onnx": deploy.export_onnx, "torch": deploy.export_torch, "aoti": deploy.export_aoti}
_OPEN: dict[str, Callable[[Path], Call]] = {
    "onnx": deploy.open_onnx,
    "torch": deploy.open_torch,
    "aoti": deploy.open_aoti,
}
_SUFFIX = {"onnx": ".onnx", "torch": ".pt2", "aoti": "-aoti.pt2"}


@dataclass(frozen=True)
class _Written:
    """One file, and how it compares."""

    file: Path
    takes: str
    call: Call
    error: float | None
    """largest difference to the model's output, relative; None where it is not to be equal"""


def export(
    run: str | Path,
    format: Literal["onnx", "torch", "aoti"] = "onnx",
    int8: bool = False,
    data: str | None = None,
    data_root: str | None = None,
    calibration_images: int | None = None,
    batch_size: int = 8,
    out: str | None = None,
    console: Console | None = None,
) -> Path:
    """Write a run's best model as a file that runs without this package, check it, and time it.

    An AttNet is folded first and takes any batch, height and width. Other models take any batch and, where
    their graph allows it, any size.

    Args:
        run: the run's folder.
        format: onnx for ONNX Runtime and OpenVINO, in two files, for any batch and for one; torch for a
            torch.export program; aoti for a package that AOTInductor compiled for this machine's CPU.
        int8: also write an int8 ONNX file, calibrated on training images, and tell its accuracy.
        data: what int8 is calibrated and measured on, DATA as in training; the run's own by default.
        data_root: folder of a named timm dataset, if not the run's.
        calibration_images: how many of them it is calibrated on, 256 by default.
        batch_size: images of the fixed batch, and of the measured one.
        out: folder to write, RUN/export by default. Files of the same name are replaced, and files of other
            weights that its export.json lists are removed.
        console: where progress shows.

    Returns:
        the folder: the files, and export.json with classes and what the input must look like.

    Raises:
        FileNotFoundError, ValueError: no such run, no such data, or int8 in another format than onnx, data
            without int8, a folder whose export.json is not of an export.
        RuntimeError: the written file does not compute what the model does; it is not kept.
    """
    if int8 and format != "onnx":
        raise ValueError(f"int8 is written as onnx only, got --format {format}: leave one of them out")
    if not int8 and (data, data_root, calibration_images) != (None, None, None):
        raise ValueError("data and calibration_images are for int8: add --int8, or leave them out")
    count = 256 if calibration_images is None else calibration_images
    if batch_size < 1 or count < 1:
        raise ValueError(f"batch_size and calibration_images must be at least 1, got {batch_size}, {count}")
    console = console or plain_console()
    opened = Run.open(run)
    model, transform, classes = runs.load(run)
    sides = _int8_sides(opened, data, data_root, classes, count, console) if int8 else None
    folder = Path(out) if out is not None else opened.path / "export"
    weights = file_digest(opened.weights)
    before, stale = _files_before(folder, weights)
    with _staged(folder, stale) as staging:
        fast = deploy.fold(model) if isinstance(model, AttNet) else model
        images = torch.randn(batch_size, *transform.input_size)
        written = _write_all(fast, model, format, images, staging, console)
        if sides is not None:
            written.append(_write_int8(written[0], sides, transform, batch_size, console))
        forms = {"eager": model, **({"eager, folded": fast} if fast is not model else {})}
        milliseconds = _latency(forms | {one.file.name: one.call for one in written}, images, console)
        description = _describe(transform, classes, written, milliseconds, batch_size)
        description["weights"], description["files"] = weights, before | description["files"]
        text = json.dumps(description, indent=1, ensure_ascii=False)
        (staging / _DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    _tell(console, folder, written, milliseconds, batch_size)
    if stale:
        names = ", ".join(path.name for path in stale)
        console.print(f"removed, since they held other weights: {names}", soft_wrap=True)
    return folder


def _write_all(
    fast: nn.Module, model: nn.Module, format: str, images: Tensor, folder: Path, console: Console
) -> list[_Written]:
    """The files of a format, each checked against the model."""
    path = folder / f"model{_SUFFIX[format]}"
    channels, height, width = images.shape[1:]
    console.print(f"writing {path.name}", soft_wrap=True)
    try:
        # Traced where no map is one position high or wide, which would be taken for a constant.
        _WRITE[format](fast, path, torch.randn(2, channels, _LARGE, _LARGE + 32), "any")
        shapes = [(1, channels, height, width), (3, channels, height + 5, width + 37)]
        written = [_check(path, "any batch and size", format, model, shapes)]
        least = _least_side(written[0].call, model, channels)
        if least > 1:
            written = [replace(written[0], takes=f"any batch, {least} pixels or more high and wide")]
    except (ValueError, RuntimeError) as error:
        console.print(f"{error}\nwriting it for {height} × {width} only", soft_wrap=True)
        _WRITE[format](fast, path, torch.randn(2, channels, height, width), "batch")
        shapes = [(batch, channels, height, width) for batch in (1, 3)]
        written = [_check(path, f"any batch of {height} × {width}", format, model, shapes)]
    if format == "onnx":
        fixed = folder / f"model-batch{len(images)}.onnx"
        console.print(f"writing {fixed.name}", soft_wrap=True)
        _WRITE[format](fast, fixed, images, "fixed")
        takes = f"{len(images)} of {height} × {width}"
        written.append(_check(fixed, takes, format, model, [(len(images), channels, height, width)]))
    return written


def _least_side(call: Call, model: nn.Module, channels: int) -> int:
    """Pixels that images must have: torch.export takes it for granted that no map has a single position."""
    for side in (1, 2, 3, 5, 9, 17, 33, 65):
        with suppress(Exception):  # each runtime has its own types
            if deploy.largest_error(call, model, [(1, channels, side, side)]) <= _TOLERANCE:
                return side
    return _LARGE


def _check(
    path: Path, takes: str, format: str, model: nn.Module, shapes: list[tuple[int, int, int, int]]
) -> _Written:
    """Open a file and compare it with the model on batches of the given shapes (B C H W)."""
    try:
        call = _OPEN[format](path)
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
    return _Written(path, takes, call, error)


def _write_int8(
    source: _Written,
    sides: tuple[Split, Split],
    transform: runs.EvalTransform,
    batch_size: int,
    console: Console,
) -> _Written:
    """The int8 file; prints how accuracy changes."""
    calibration, measured = (
        eval_loader(side, transform, transform.input_size[0], batch_size, workers=0) for side in sides
    )
    path = source.file.with_name("model-int8.onnx")
    console.print(f"writing {path.name}, calibrated on {len(sides[0])} images", soft_wrap=True)
    batches = (images for images, _ in track(calibration, console, "calibrating", len(calibration)))
    deploy.quantize_onnx(source.file, path, batches)
    written = _Written(path, source.takes, deploy.open_onnx(path), None)
    right = []
    for one in (source, written):
        model: Any = one.call
        shown = track(measured, console, f"measuring {one.file.name}", len(measured))
        probabilities, labels = predict_loader(model, shown, torch.device("cpu"))
        right.append(probabilities.argmax(1) == labels)
    before, after = right
    console.print(
        f"int8: top-1 {100 * before.mean():.2f} → {100 * after.mean():.2f} % on {len(before)} images: "
        f"{(before & ~after).sum()} right before are wrong now, {(after & ~before).sum()} wrong before are "
        "right now",
        soft_wrap=True,
    )
    return written


def _int8_sides(
    run: Run, data: str | None, data_root: str | None, classes: list[str], count: int, console: Console
) -> tuple[Split, Split]:
    """Images to calibrate on and images to measure on: training and test side, or two parts of one side."""
    if data is None:
        config = read_config(run)
        data, data_root = config.data, data_root or config.data_root
    name, measured = find_side(run, data, "auto", data_root, classes, console)
    pool = (
        measured
        if name in ("all", "train")
        else find_side(run, data, "train", data_root, classes, console)[1]
    )
    order = np.random.default_rng(0).permutation(len(pool))
    calibration = Split(pool.source, [pool.indices[i] for i in order[:count]])
    if pool is measured:
        if len(pool) <= count:
            raise ValueError(
                f"{data} has {len(pool)} images, all of which --calibration_images {count} would take: give "
                "fewer, or more data"
            )
        measured = Split(pool.source, [pool.indices[i] for i in order[count:]])
    return calibration, measured


@torch.inference_mode()
def _latency(forms: dict[str, Call], images: Tensor, console: Console) -> dict[str, float]:
    """Median milliseconds of a call, by turns."""
    calls = {name: functools.partial(call, images) for name, call in forms.items()}
    taken = median_seconds(calls)
    return {name: 1000 * seconds for name, seconds in taken.items()}


def _files_before(folder: Path, weights: str) -> tuple[dict[str, Any], list[Path]]:
    """What export.json says of files that hold the same weights; and its files that hold others."""
    path = folder / _DESCRIPTION
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder to write to")
    if not path.is_file():
        return {}, []
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        files = {name: one for name, one in told["files"].items() if (folder / Path(name).name).is_file()}
        if told["weights"] == weights:
            return files, []
        return {}, [folder / Path(name).name for name in files]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} describes no export: move it away, or write to another folder") from None


def _describe(
    transform: runs.EvalTransform,
    classes: list[str],
    written: list[_Written],
    milliseconds: dict[str, float],
    batch_size: int,
) -> dict[str, Any]:
    """What a program that opens the files must know."""
    shared = {
        "eager_milliseconds": round(milliseconds["eager"], 2),
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
    }
    files = {
        one.file.name: {
            "takes": one.takes,
            "largest_relative_error": one.error,
            "milliseconds": round(milliseconds[one.file.name], 2),
            **shared,
        }
        for one in written
    }
    return {
        "classes": classes,
        "input": {"name": "images", "dtype": "float32", "axes": "batch channels height width"}
        | transform.describe(),
        "output": {"name": "logits", "axes": "batch classes"},
        "files": files,
    }


def _tell(
    console: Console, folder: Path, written: list[_Written], milliseconds: dict[str, float], batch_size: int
) -> None:
    told = {one.file.name: one for one in written}
    eager = milliseconds["eager"]
    rows = []
    for name, value in milliseconds.items():
        one = told.get(name)
        error = "" if one is None or one.error is None else f"{one.error:.1e}"
        rows.append((name, "" if one is None else one.takes, error, f"{value:.1f}", f"{eager / value:.2f} ×"))
    heads = ("form", "takes", "relative error", f"ms for {batch_size}", "speed of eager")
    title = f"batch of {batch_size}, {torch.get_num_threads()} threads, medians of {ROUNDS} interleaved calls"
    console.print(make_table(title, heads, rows))
    console.print(f"everything is in {folder}", soft_wrap=True)


@contextmanager
def _staged(folder: Path, stale: list[Path]) -> Iterator[Path]:
    """A folder to write into, whose files move to their place only when all is well; stale ones go then.

    The description goes first and comes last: none is there that is not of the files beside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as name:
        yield Path(name)
        folder.mkdir(exist_ok=True)
        for path in (folder / _DESCRIPTION, *stale):
            path.unlink(missing_ok=True)
        for path in sorted(Path(name).iterdir(), key=lambda path: path.name == _DESCRIPTION):
            os.replace(path, folder / path.name)
