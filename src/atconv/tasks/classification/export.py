"""A classifier as files that run without this package: written, compared with the model, and timed."""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from atconv import deploy
from atconv.data.splits import Split
from atconv.deploy.timing import ROUNDS, median_seconds
from atconv.engine.predictor import Predictor
from atconv.engine.progress import progress
from atconv.engine.reading import read_json
from atconv.engine.tables import Table
from atconv.io import file_digest
from atconv.models.attnet import AttNet
from atconv.tasks.classification.data import ReadableBatches, open_split
from atconv.tasks.classification.export_files import DESCRIPTION, Call, Written, staged, write_all
from atconv.tasks.classification.metrics import predict_batches

__all__ = ["ExportReport", "ExportedFile", "Int8Accuracy", "export"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedFile:
    """One file, compared with the model."""

    name: str
    accepts: str
    """shapes of its input, in words"""
    error: float | None
    """largest difference from the model's output, relative; None for int8, which is not meant to be equal"""
    milliseconds: float
    """median time of one batch"""


@dataclass(frozen=True)
class Int8Accuracy:
    """How int8 changes predictions. Percentages are 0…100."""

    images: int
    top1_before: float
    top1_after: float
    newly_wrong: int
    newly_right: int


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
            forms.append((file.name, file.accepts, error, file.milliseconds))
        rows = [(*form, f"{value:.1f}", f"{eager / value:.2f} ×") for *form, value in forms]
        columns = ("form", "accepts", "relative error", f"ms for {self.batch_size}", "speed of eager")
        title = f"batch of {self.batch_size}, {self.threads} threads, medians of {ROUNDS} interleaved calls"
        return [Table(title, columns, rows, text_columns=2)]


def export(
    predictor: Predictor[Any, Any],
    format: Literal["onnx", "torch", "aoti"] = "onnx",
    int8: bool = False,
    data: str | None = None,
    data_root: str | None = None,
    calibration_images: int | None = None,
    batch_size: int = 8,
    opset: Literal[17, 20] = 20,
    out: str | None = None,
) -> ExportReport:
    """Write a classifier as a file that runs without this package, check it, and time it.

    An AttNet is folded first and accepts any batch, height and width. Other models accept any batch and,
    where their graph allows it, any size.

    Args:
        predictor: from `atconv.load`.
        format: onnx for ONNX Runtime and OpenVINO, in two files, for any batch and for one; torch for a
            torch.export program; aoti for a package that AOTInductor compiled for this machine's CPU.
        int8: also write an int8 ONNX file, calibrated on training images, and measure its accuracy.
        data: what int8 is calibrated and measured on, DATA as in training; the run's own by default.
        data_root: folder of a named timm dataset, if not the run's.
        calibration_images: how many of them calibrate int8, 256 by default.
        batch_size: images of the fixed batch, and of the timed one.
        opset: version of ONNX's operators; 17 for older runtimes, GELU is its formula there.
        out: folder to write, RUN/export by default. Files of the same name are replaced, and files of other
            weights that its export.json lists are removed.

    Returns:
        the files, also listed in export.json in the folder, with classes and what the input must look like.

    Raises:
        FileNotFoundError, ValueError: no such data, or int8 in another format than onnx, data without int8,
            a folder whose export.json is not of an export.
        RuntimeError: the written file does not compute what the model does; it is not kept.
    """
    if int8 and format != "onnx":
        raise ValueError(f"int8 is written as onnx only, got --format {format}: leave one of them out")
    if opset != 20 and format != "onnx":
        raise ValueError(f"opset is for onnx, got --format {format}: leave one of them out")
    if not int8 and (data, data_root, calibration_images) != (None, None, None):
        raise ValueError("data and calibration_images are for int8: add --int8, or leave them out")
    count = 256 if calibration_images is None else calibration_images
    if batch_size < 1 or count < 1:
        raise ValueError(f"batch_size and calibration_images must be at least 1, got {batch_size}, {count}")
    splits = _int8_splits(predictor, data, data_root, count) if int8 else None
    folder = Path(out) if out is not None else predictor.run.path / "export"
    weights = file_digest(predictor.run.weights)
    kept, stale = _earlier_files(folder, weights)
    model = copy.deepcopy(predictor.model).cpu()
    forms: dict[str, Call] = {"eager": model}
    folded = model
    if isinstance(model, AttNet):
        forms["eager, folded"] = folded = deploy.fold(model)
    images, accuracy = torch.randn(batch_size, *predictor.transform.input_size), None
    with staged(folder, stale) as staging:
        written = write_all(folded, model, format, images, staging, opset)
        if splits is not None:
            int8_file, accuracy = _write_int8(written[0], splits, predictor, batch_size)
            written.append(int8_file)
        milliseconds = _time(forms | {file.path.name: file.call for file in written}, images)
        report = ExportReport(
            folder,
            [ExportedFile(f.path.name, f.accepts, f.error, milliseconds[f.path.name]) for f in written],
            {name: milliseconds[name] for name in forms},
            batch_size,
            torch.get_num_threads(),
            accuracy,
            [path.name for path in stale],
        )
        description = _describe(predictor, report, weights, kept)
        text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
        (staging / DESCRIPTION).write_text(text, encoding="utf-8")
    logger.info("everything is in %s", folder)
    if stale:
        logger.info("removed, since they held other weights: %s", ", ".join(report.removed))
    return report


def _write_int8(
    source: Written, splits: tuple[Split, Split], predictor: Predictor[Any, Any], batch_size: int
) -> tuple[Written, Int8Accuracy]:
    """The int8 file, and how it changes predictions."""
    calibration, measured = (
        ReadableBatches(name, split, predictor.transform, batch_size, 0, predictor.config)
        for name, split in zip(("calibration", "measured"), splits, strict=True)
    )
    path = source.path.with_name("model-int8.onnx")
    logger.info("writing %s, calibrated on %d images", path.name, len(splits[0]))
    shown = progress(calibration, "calibrating")
    deploy.quantize_onnx(source.path, path, (images for images, _ in shown))
    written = Written(path, source.accepts, deploy.open_onnx(path), None)
    correct = []
    for file in (source, written):
        call: Any = file.call
        shown = progress(measured, f"measuring {file.path.name}")
        probabilities, labels = predict_batches(call, shown, torch.device("cpu"))
        correct.append(probabilities.argmax(1) == labels)
    before, after = correct
    top1 = [100 * float(hits.mean()) for hits in correct]
    wrong, right = int((before & ~after).sum()), int((after & ~before).sum())
    logger.info(
        "int8: top-1 %.2f → %.2f %% on %d images: %d became wrong, %d became right",
        *top1, len(before), wrong, right,
    )  # fmt: skip
    return written, Int8Accuracy(len(before), top1[0], top1[1], wrong, right)


def _int8_splits(
    predictor: Predictor[Any, Any], data: str | None, data_root: str | None, count: int
) -> tuple[Split, Split]:
    """Images to calibrate on and images to measure on: training and test split, or two parts of one split."""
    config: Any = predictor.config
    choose = functools.partial(open_split, predictor.run, config, predictor.classes, data)
    name, measured = choose("auto", data_root)
    pool = measured if name in ("all", "train") else choose("train", data_root)[1]
    order = np.random.default_rng(0).permutation(len(pool))
    calibration = Split(pool.source, [pool.indices[i] for i in order[:count]])
    if pool is measured:
        if len(pool) <= count:
            raise ValueError(
                f"{data or config.data} has {len(pool)} images, all of which --calibration-images {count} "
                "would take: give fewer, or more data"
            )
        measured = Split(pool.source, [pool.indices[i] for i in order[count:]])
    return calibration, measured


@torch.inference_mode()
def _time(forms: Mapping[str, Call], images: Tensor) -> dict[str, float]:
    """Median milliseconds of one batch for each form."""
    seconds = median_seconds({name: functools.partial(call, images) for name, call in forms.items()})
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
    files = {name: about for name, about in content["files"].items() if (folder / Path(name).name).is_file()}
    if content["weights"] == weights:
        return files, []
    return {}, [folder / Path(name).name for name in files]


def _describe(
    predictor: Predictor[Any, Any], report: ExportReport, weights: str, kept: dict[str, Any]
) -> dict[str, Any]:
    """The content of export.json: what a program that opens the files must know."""
    files = {
        file.name: {
            "accepts": file.accepts,
            "largest_relative_error": file.error,
            "milliseconds": round(file.milliseconds, 2),
            "eager_milliseconds": round(report.eager_milliseconds["eager"], 2),
            "batch_size": report.batch_size,
            "threads": report.threads,
        }
        for file in report.files
    }
    input_ = {"name": "images", "dtype": "float32", "axes": "batch channels height width"}
    return {
        "classes": predictor.classes,
        "input": input_ | predictor.transform.describe(),
        "output": {"name": "logits", "axes": "batch classes"},
        "weights": weights,
        "files": kept | files,
    }
