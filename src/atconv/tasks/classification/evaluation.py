"""How good a classifier is: accuracy with its interval, calibration, classes, speed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import binomtest
from torch import Tensor, nn

from atconv.data.checking import check_files
from atconv.data.images import Mode
from atconv.data.loaders import eval_loader, stream_loader
from atconv.data.sources import FolderSource, ImageSource, KeptPictures, Stream
from atconv.data.splits import Split, is_stream, load_split, open_sources
from atconv.engine import run as runs
from atconv.engine.progress import make_table, plain_console, track
from atconv.engine.run import Run
from atconv.io import write_json, write_rows
from atconv.tasks.classification import plots as figures
from atconv.tasks.classification.config import ClassificationConfig, read_config

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluate_side",
    "evaluate_stream",
    "expected_calibration_error",
    "find_side",
    "predict_loader",
]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one set. Percentages are 0…100."""

    images: int
    top1: float
    top1_interval: tuple[float, float]
    """95 % Wilson interval of top1"""
    top5: float | None
    """None where there are five classes or fewer"""
    top5_interval: tuple[float, float] | None
    calibration_error: float
    """expected calibration error over 15 bins of confidence"""
    images_per_second: float
    """reading, transform and model together"""
    per_class: list[dict[str, Any]]
    probabilities: NDArray[np.float32]
    """images × classes"""
    labels: NDArray[np.int64]

    def summary(self) -> dict[str, Any]:
        """All but the arrays, for JSON."""
        return {k: v for k, v in asdict(self).items() if k not in ("probabilities", "labels")}


def evaluate(
    run: str | Path,
    data: str,
    split: Literal["auto", "train", "val", "test", "all"] = "auto",
    data_root: str | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    console: Console | None = None,
) -> tuple[Evaluation, Path]:
    """Evaluate a run's best model, print tables, and write figures to RUN/evaluation/.

    Args:
        run: the run's folder.
        data: DATA as in training. Where it is the run's own, its saved sides are used.
        split: the side; "auto" takes test, else val, else everything there is.
        data_root: folder of a named timm dataset, if not the run's.
        batch_size: images in one forward pass.
        workers: data-loading processes.
        device: where the model runs; auto takes an accelerator if there is one.

    Returns:
        the figures, and the folder that metrics.json, per_class.csv, predictions.csv, confusion.png
        and mistakes.png were written to.

    Raises:
        FileNotFoundError, ValueError: no such run, no such data, or classes the run does not know.
    """
    console = console or plain_console()
    opened = Run.open(run)
    model, transform, classes = runs.load(run)
    side_name, side = find_side(opened, data, split, data_root, classes, console)
    console.print(f"{len(side)} images, {side_name} side of {data}", soft_wrap=True)
    where = runs.resolve_device(device)
    result = evaluate_side(model, transform, side, len(classes), batch_size, workers, where, console)
    console.print(summary_table(result, f"{opened.path} on {data}, {side_name} side"))
    console.print(class_table(result, classes))
    folder = opened.path / "evaluation" / f"{Path(data).name.replace('/', '_')}-{side_name}"
    write_report(result, side, transform.prepare.mode, classes, folder)
    written = "metrics.json, per_class.csv, predictions.csv, confusion.png, mistakes.png"
    console.print(f"written to {folder}: {written}", soft_wrap=True)
    return result, folder


def evaluate_side(
    model: nn.Module,
    transform: runs.EvalTransform,
    side: Split,
    classes: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    console: Console,
) -> Evaluation:
    """Run a model over a side and compute every figure."""
    loader = eval_loader(side, transform, transform.input_size[0], batch_size, workers)
    batches = track(loader, console, "evaluating", len(loader))
    started = time.perf_counter()
    probabilities, labels = predict_loader(model.to(device).eval(), batches, device)
    return figures_of(probabilities, labels, classes, len(labels) / (time.perf_counter() - started))


def evaluate_stream(
    model: nn.Module,
    transform: runs.EvalTransform,
    stream: Stream,
    classes: int,
    batch_size: int,
    device: torch.device,
    console: Console,
) -> tuple[Evaluation, KeptPictures]:
    """As `evaluate_side`, for a stream; and the pictures of its worst mistakes."""
    # In this process, so that the order is the stream's own and positions mean the same in the second pass.
    loader = stream_loader(stream, transform, transform.input_size[0], batch_size, workers=0, drop_last=False)
    started = time.perf_counter()
    probabilities, labels = predict_loader(
        model.to(device).eval(), track(loader, console, "evaluating"), device
    )
    result = figures_of(probabilities, labels, classes, len(labels) / (time.perf_counter() - started))
    worst = figures.worst_positions(probabilities, labels)
    return result, KeptPictures(stream, [int(i) for i in worst])


@torch.inference_mode()
def predict_loader(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Class probabilities (images × classes) and labels of all batches."""
    probabilities, labels = [], []
    for images, targets in batches:
        probabilities.append(model(images.to(device)).float().softmax(1).cpu())
        labels.append(targets)
    return torch.cat(probabilities).numpy(), torch.cat(labels).numpy()


def figures_of(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], classes: int, images_per_second: float
) -> Evaluation:
    """All figures from probabilities (images × classes) and labels."""
    count = len(labels)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = order == labels[:, None]
    top1 = int(hits[:, 0].sum())
    top5 = int(hits[:, :5].any(1).sum()) if classes > 5 else None
    return Evaluation(
        images=count,
        top1=100 * top1 / count,
        top1_interval=wilson_interval(top1, count),
        top5=None if top5 is None else 100 * top5 / count,
        top5_interval=None if top5 is None else wilson_interval(top5, count),
        calibration_error=100 * expected_calibration_error(probabilities, labels),
        images_per_second=images_per_second,
        per_class=_per_class(order[:, 0], labels, classes),
        probabilities=probabilities,
        labels=labels,
    )


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share, in percent."""
    interval = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def expected_calibration_error(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, 0…1 (arXiv 1706.04599)."""
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    weight = np.bincount(which, minlength=bins)
    gaps = np.abs(
        np.bincount(which, weights=confidence, minlength=bins)
        - np.bincount(which, weights=correct, minlength=bins)
    )
    return float(gaps.sum() / weight.sum())


def summary_table(result: Evaluation, title: str) -> Any:
    def percent(value: float, interval: tuple[float, float]) -> str:
        return f"{value:.2f} %  [{interval[0]:.2f}, {interval[1]:.2f}]"

    rows = [("top-1  [95 % interval]", percent(result.top1, result.top1_interval))]
    if result.top5 is not None and result.top5_interval is not None:
        rows.append(("top-5  [95 % interval]", percent(result.top5, result.top5_interval)))
    rows += [
        ("calibration error", f"{result.calibration_error:.2f} %"),
        ("images", str(result.images)),
        ("images/s", f"{result.images_per_second:.0f}"),
    ]
    return make_table(title, ("figure", "value"), rows)


def class_table(result: Evaluation, classes: Sequence[str], most: int = 30) -> Any:
    """Per-class figures; with many classes only the worst by recall (all of them are in per_class.csv)."""
    rows = (
        sorted(result.per_class, key=lambda row: row["recall"]) if len(classes) > most else result.per_class
    )
    title = "classes" if len(classes) <= most else f"the {most} classes with the lowest recall"
    shown = [
        (classes[r["class"]], str(r["images"]), *(f"{r[k]:.1f} %" for k in ("precision", "recall", "f1")))
        for r in rows[:most]
    ]
    return make_table(title, ("class", "images", "precision", "recall", "F1"), shown)


def write_report(
    result: Evaluation,
    pictures: Split | KeptPictures,
    mode: Mode,
    classes: Sequence[str],
    folder: Path,
    about: dict[str, Any] | None = None,
) -> None:
    """Write per_class.csv, predictions.csv, confusion.png, mistakes.png, and last metrics.json.

    `about` is put before the figures in metrics.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(
        folder / "per_class.csv", [{**row, "class": classes[row["class"]]} for row in result.per_class]
    )
    predicted = result.probabilities.argmax(1)
    rows = [
        {
            "image": pictures.name(i),
            "label": classes[result.labels[i]],
            "predicted": classes[predicted[i]],
            "probability": f"{result.probabilities[i, predicted[i]]:.4f}",
        }
        for i in range(len(result.labels))
    ]
    write_rows(folder / "predictions.csv", rows)
    figures.confusion_matrix(result.labels, predicted, classes, folder / "confusion.png")
    figures.worst_mistakes(
        result.probabilities, result.labels, pictures, mode, classes, folder / "mistakes.png"
    )
    write_json(folder / "metrics.json", {**(about or {}), **result.summary()})


def _per_class(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> list[dict[str, Any]]:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0.0)
    precision, recall, f1, images = columns
    return [
        {
            "class": i,
            "images": int(images[i]),
            "precision": 100 * float(precision[i]),
            "recall": 100 * float(recall[i]),
            "f1": 100 * float(f1[i]),
        }
        for i in range(classes)
    ]


def find_side(
    run: Run, data: str, split: str, data_root: str | None, classes: list[str], console: Console
) -> tuple[str, Split]:
    """A side of DATA by name, "auto" for the one to evaluate, and its name: the run's own where DATA is the
    run's, else what DATA comes with.

    Raises:
        ValueError: DATA has no such side, is a stream, or names other classes.
    """
    if is_stream(data):
        raise ValueError(f"{data} is a stream: give an image folder, an LMDB, torch/…, hfds/… or digits")
    trained = read_config(run) if run.config.is_file() else None
    if trained is not None and run.split.is_file() and _same_data(trained, data, data_root):
        saved = load_split(trained, run.path)
        sides = saved.sides
    else:
        root = data_root or (trained.data_root if trained is not None and trained.data == data else None)
        sources = open_sources(ClassificationConfig(data=data, data_root=root))
        if sources["train"].classes != classes:
            sources = _with_classes(sources, classes, data)
        sides = {name: _readable(source, console) for name, source in sources.items()}
        if list(sides) == ["train"]:
            sides = {"all": sides["train"]}
    wanted = next((s for s in ("test", "val", "all") if s in sides), "train") if split == "auto" else split
    if wanted == "all" and len({id(side.source) for side in sides.values()}) == 1:
        one = next(iter(sides.values())).source
        return wanted, Split(one, sorted(i for side in sides.values() for i in side.indices))
    if wanted not in sides:
        raise ValueError(f"{data} has no {wanted} side, only {', '.join(sides)}: choose one with --split")
    return wanted, sides[wanted]


def _readable(source: ImageSource, console: Console) -> Split:
    """All pictures of a source but the unreadable ones, which are named."""
    report = check_files(source, "decode", console)
    for i, reason in enumerate(report.reasons):
        if reason is not None:
            console.print(f"left out {source.name(i)}: {reason}", soft_wrap=True)
    side = Split(source, [i for i, reason in enumerate(report.reasons) if reason is None])
    if not len(side):
        raise ValueError(f"none of the {len(source)} files is a readable picture")
    return side


def _same_data(trained: ClassificationConfig, data: str, data_root: str | None) -> bool:
    if trained.data == data or (Path(data).exists() and Path(data).resolve() == Path(trained.data).resolve()):
        return data_root is None or trained.data_root == data_root
    return False


def _with_classes(sources: dict[str, Any], classes: list[str], data: str) -> dict[str, Any]:
    """Folders again, labeled by the run's classes; other kinds must name the same classes."""
    found = {name: source for name, source in sources.items() if isinstance(source, FolderSource)}
    if len(found) != len(sources):
        raise ValueError(
            f"{data} names other classes than the run: {sources['train'].classes[:5]}… and not {classes[:5]}…"
        )
    return {name: FolderSource(source.root, classes) for name, source in found.items()}
