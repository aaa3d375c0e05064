"""A trained model as files that run without this package: written, compared with the model, and timed."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from atconv.deploy import FORMATS, Call
from atconv.deploy.timing import ROUNDS, median_seconds
from atconv.engine.reading import read_json
from atconv.engine.tables import Table
from atconv.io import file_digest
from atconv.ops.processor import cpu_has_int8
from atconv.tasks.common.export_files import DESCRIPTION, staged, write_all
from atconv.tasks.common.exporter import Agreement, Exporter, Int8Accuracy, Written

__all__ = ["ExportReport", "ExportedFile", "export"]

logger = logging.getLogger(__name__)

_COMPARED = 8  # images of the run's data
_HALF = 2e-2  # tolerance of half precision


@dataclass(frozen=True)
class ExportedFile:
    """One file, compared with the model."""

    name: str
    accepts: str
    """shapes of its input, in words"""
    error: float | None
    """largest difference from the model's output, relative; None for int8, which is not meant to be equal,
    and where the file does not run here"""
    milliseconds: float | None
    """median time of one batch; None where the file does not run here"""
    agreement: Agreement = field(default_factory=dict)
    """differences from `predict` on images of the run's data"""


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote. Times are medians of interleaved calls with one batch."""

    folder: Path
    files: list[ExportedFile]
    eager_milliseconds: dict[str, float]
    """of the model in eager PyTorch, and of the folded model"""
    batch_size: int
    threads: int
    int8: Int8Accuracy | None
    removed: list[str]
    """files of an earlier export, which held other weights"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"folder": str(self.folder)}

    def tables(self) -> list[Table]:
        """What to show a person."""
        eager = self.eager_milliseconds["eager"]
        forms = [(name, "", "", milliseconds) for name, milliseconds in self.eager_milliseconds.items()]
        for file in self.files:
            error = "" if file.error is None else f"{file.error:.1e}"
            if file.milliseconds is not None:
                forms.append((file.name, file.accepts, error, file.milliseconds))
        rows = [(*form, f"{value:.1f}", f"{eager / value:.2f} ×") for *form, value in forms]
        columns = ("form", "accepts", "relative error", f"ms for {self.batch_size}", "speed of eager")
        title = f"batch of {self.batch_size}, {self.threads} threads, medians of {ROUNDS} interleaved calls"
        tables = [Table(title, columns, rows, text_columns=2)]
        compared = [
            (file.name, what, f"{value:.3g}") for file in self.files for what, value in file.agreement.items()
        ]
        if compared:
            tables.append(
                Table("compared with predict", ("file", "", "largest difference"), compared, text_columns=2)
            )
        return tables


def export(
    exporter: Exporter,
    format: Literal["onnx", "web", "openvino", "torch", "aoti", "executorch", "coreml"] = "onnx",
    int8: bool = False,
    data: str | None = None,
    data_root: str | None = None,
    calibration_images: int | None = None,
    batch_size: int = 8,
    opset: Literal[17, 20] = 20,
    fp16: bool = False,
    out: str | None = None,
    onnxruntime_web: str | None = None,
) -> ExportReport:
    """Write a model as a file that runs without this package, compare it with the model, and time it.

    An AttNet is folded first. A classifier's file accepts any batch, height and width where its graph allows
    it, else any batch of the run's size. A detector's takes one image of any size and gives boxes; a
    segmenter's gives the class of every pixel. A generator's is its velocity.

    Args:
        exporter: the run's model.
        format: onnx for ONNX Runtime, a classifier in two files, for any batch and for one; web for a page
            that runs the model in a browser, to be served by any web server; openvino for OpenVINO; torch
            for a torch.export program; aoti for a package that AOTInductor compiled for this machine's CPU;
            executorch for a .pte file for phones, on XNNPACK; coreml for Apple's systems. The last two and
            the page of a classifier take one image of the run's size; a detector is written as onnx and web.
        int8: also write an int8 file, calibrated on training images, and measure its accuracy.
        data: images that the file is compared on, and that int8 is calibrated and measured on, DATA as in
            training; the run's own by default.
        data_root: folder of a named timm dataset, if not the run's.
        calibration_images: how many of them calibrate int8, 256 by default.
        batch_size: images of the fixed batch, and of the timed one.
        opset: version of ONNX's operators; 17 for older runtimes, GELU is its formula there.
        fp16: half precision, for openvino (of the stored weights) and coreml (of all it computes).
        out: folder to write, RUN/export by default and RUN/export/web for a page. Files of the same name are
            replaced, and files of other weights that its export.json lists are removed.
        onnxruntime_web: folder of onnxruntime-web for a page; npm fetches it by default.

    Returns:
        the files, also listed in export.json in the folder, with classes and what the input must look like.

    Raises:
        FileNotFoundError, ValueError: no such data, a format that the task does not have, int8 in another
            format than it has, a folder whose export.json is not of an export.
        RuntimeError: the written file does not compute what the model does; it is not kept.
    """
    _check_options(exporter, format, int8, opset, fp16, calibration_images, batch_size)
    if onnxruntime_web is not None and format != "web":
        raise ValueError(f"onnxruntime_web is for web, got --format {format}: leave one of them out")
    entry = FORMATS[format]
    companions = entry.companions(onnxruntime_web) if entry.companions else []
    predictor = exporter.predictor
    count = 256 if calibration_images is None else calibration_images
    if fp16:
        exporter.tolerance = _HALF
    if int8:
        exporter.prepare_int8(data, data_root, count)
        if not cpu_has_int8():
            logger.warning(
                "this CPU has no instructions for int8 products (VNNI, AMX): the file becomes smaller, and "
                "hardly faster here"
            )
    images = _images(exporter, data, data_root)
    if not exporter.any_batch or not entry.dynamic or companions:
        batch_size = 1
    folder = Path(out) if out is not None else predictor.run.path / "export" / entry.folder
    weights = file_digest(exporter.weights)
    kept, stale = _earlier_files(folder, weights)
    accuracy = None
    with staged(folder, stale) as staging:
        options = {"opset": opset, "fp16": fp16}
        written = write_all(exporter, format, batch_size, staging, **options)
        agreements = [_agreement(exporter, file, images) for file in written]
        if int8:
            int8_file, accuracy = exporter.write_int8(written[0], entry, batch_size)
            written.append(int8_file)
            agreements.append({})
        milliseconds = _time(
            {**exporter.forms, **{file.path.name: file.call for file in written if file.call is not None}},
            exporter.inputs(batch_size, *exporter.shape[1:]),
        )
        report = ExportReport(
            folder,
            [
                ExportedFile(f.path.name, f.accepts, f.error, milliseconds.get(f.path.name), agreement)
                for f, agreement in zip(written, agreements, strict=True)
            ],
            {name: milliseconds[name] for name in exporter.forms},
            batch_size,
            torch.get_num_threads(),
            accuracy,
            [path.name for path in stale],
        )
        description = _describe(exporter, report, weights, kept)
        text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
        (staging / DESCRIPTION).write_text(text, encoding="utf-8")
        for file in companions:
            shutil.copy(file, staging)
    logger.info("everything is in %s", folder)
    if companions:
        serve = f"python -m http.server --directory {folder}"
        logger.info("serve it, such as with %s, and open http://localhost:8000", serve)
    if stale:
        logger.info("removed, since they held other weights: %s", ", ".join(report.removed))
    return report


def _check_options(
    exporter: Exporter,
    format: str,
    int8: bool,
    opset: int,
    fp16: bool,
    calibration_images: int | None,
    batch_size: int,
) -> None:
    """Fail fast: raise ValueError for options that do not fit together."""
    task = exporter.predictor.task
    if format not in exporter.formats:
        raise ValueError(
            f"a {task} run is written as {' or '.join(exporter.formats)}, got --format {format}: "
            f"{exporter.why_not}"
        )
    if int8 and format not in exporter.int8_formats:
        formats = " or ".join(exporter.int8_formats)
        raise ValueError(
            f"int8 is written as {formats} only, got --format {format}: leave one of them out"
            if formats
            else f"int8 is for classification runs, this is a {task} run: leave it out"
        )
    if opset != 20 and "opset" not in FORMATS[format].options:
        raise ValueError(f"opset is for onnx, got --format {format}: leave one of them out")
    if fp16 and "fp16" not in FORMATS[format].options:
        raise ValueError(f"fp16 is for openvino and coreml, got --format {format}: leave one of them out")
    if not int8 and calibration_images is not None:
        raise ValueError("calibration_images are for int8: add --int8, or leave them out")
    if batch_size < 1 or (calibration_images or 1) < 1:
        raise ValueError(
            f"batch_size and calibration_images must be at least 1, got {batch_size}, {calibration_images}"
        )


def _images(exporter: Exporter, data: str | None, data_root: str | None) -> list[Any]:
    """Images to compare on. A run is exported where its data are gone, too."""
    try:
        return exporter.images(data, data_root, _COMPARED)
    except (FileNotFoundError, ValueError) as error:
        if (data, data_root) != (None, None):
            raise
        reason = str(error).partition("\n")[0]
        logger.info("not compared with predict on images, but on noise: %s (--data names others)", reason)
        return []


def _agreement(exporter: Exporter, file: Written, images: list[Any]) -> Agreement:
    """How a file's results differ from the predictor's, if it takes images one by one."""
    if file.call is None or ("any batch" not in file.accepts and "image" not in file.accepts):
        return {}
    try:
        fitting = [exporter.fit(image, file.size) if file.size else image for image in images]
        with torch.inference_mode():
            return exporter.agreement(file.call, fitting)
    except ValueError as error:
        raise RuntimeError(f"{file.path.name} does not predict what the model does: {error}") from error


@torch.inference_mode()
def _time(forms: Mapping[str, Call], inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Median milliseconds of one batch for each form."""
    seconds = median_seconds({name: functools.partial(call, *inputs) for name, call in forms.items()})
    return {name: 1000 * value for name, value in seconds.items()}


def _earlier_files(folder: Path, weights: str) -> tuple[dict[str, Any], list[Path]]:
    """The entries of export.json for files that hold the same weights, and its files that hold others."""
    path = folder / DESCRIPTION
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder to write to")
    if not path.is_file():
        return {}, []
    try:
        content = read_json(path, {"files": dict[str, dict], "weights": str})
    except ValueError:
        raise ValueError(f"{path} describes no export: move it away, or write to another folder") from None
    files = {name: about for name, about in content["files"].items() if (folder / Path(name).name).exists()}
    if content["weights"] == weights:
        return files, []
    return {}, [folder / Path(name).name for name in files]


def _describe(exporter: Exporter, report: ExportReport, weights: str, kept: dict[str, Any]) -> dict[str, Any]:
    """The content of export.json: what a program that opens the files must know."""
    files = {
        file.name: {
            "accepts": file.accepts,
            "largest_relative_error": file.error,
            "milliseconds": file.milliseconds and round(file.milliseconds, 2),
            "eager_milliseconds": round(report.eager_milliseconds["eager"], 2),
            "batch_size": report.batch_size,
            "threads": report.threads,
            "compared_with_predict": file.agreement,
        }
        for file in report.files
    }
    predictor = exporter.predictor
    about = {"task": predictor.task, "name": predictor.run.path.resolve().name, "classes": predictor.classes}
    return {**about, **exporter.describe(), "weights": weights, "files": kept | files}
