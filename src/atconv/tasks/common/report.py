"""What is said and written at the end of a run, and of an evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from atconv.engine.history import History
from atconv.engine.predictor import Metrics, Predictor
from atconv.engine.reading import read_json
from atconv.engine.run import Run
from atconv.engine.tables import Table
from atconv.io import first_few
from atconv.plots import Panel, plot_curves
from atconv.tasks.common.metric_names import metric_name

__all__ = ["evaluate_run", "free_path", "report_run"]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Metrics)


def report_run(
    run: Run,
    model: nn.Module,
    history: History,
    panels: Sequence[Panel],
    predictor: Predictor[Any, Any],
    metrics: Metrics,
    absent: Sequence[str] = (),
) -> None:
    """After the last epoch: curves, tables, and the files of an evaluation on the test split, or on
    validation where there is none. `absent` are classes that the validation split lacks, where its
    metric that picked the best epoch is a mean over classes."""
    best, column = history.rows[history.best], str(history.monitor)
    missing = f", no {first_few(absent)} in the val split" if absent else ""
    plot_curves(history.rows, panels, run.path / "curves.png", (column, best))
    rows = [
        ("best epoch", f"{history.kept} of {len(history.rows)}"),
        (metric_name(column), f"{best[column]:.2f} %" + missing),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("training time", f"{sum(row['seconds'] for row in history.rows):.0f} s"),
    ]
    logger.info(Table(str(run.path), ("metric", "value"), rows))
    note = "" if metrics.split == "test" else " (no test split: these images picked the best epoch)"
    for table in metrics.tables(f"{metrics.split} split{note}")[:1]:
        logger.info(table)
    predictor.save_evaluation(metrics, run.path, {"best_epoch": best["epoch"]})
    plots = ", ".join(sorted(plot.name for plot in run.path.glob("*.png")))
    logger.info("everything is in %s: model.safetensors, metrics.csv, %s", run.path, plots)


def evaluate_run(predictor: Predictor[Any, M], data: str | None = None, **options: Any) -> M:
    """Evaluate on a split of DATA, the run's own by default, log tables, and write to RUN/evaluation/."""
    metrics = predictor.evaluate(data, **options)
    data = data or str(getattr(predictor.config, "data", ""))
    name = f"{Path(data).resolve().name}-{metrics.split}"
    folder = free_path(predictor.run.path / "evaluation" / name, metrics, "metrics.json")
    title = f"{predictor.run.path} on {data}, {metrics.split} split"
    if metrics.trained_on:
        title += f", {metrics.trained_on} of {metrics.images} images trained on"
    for table in metrics.tables(title):
        logger.info(table)
    predictor.save_evaluation(metrics, folder)
    files = ", ".join(sorted(file.name for file in folder.iterdir()))
    logger.info("written to %s: %s", folder, files)
    return metrics


def free_path(path: Path, metrics: Metrics, file: str = "") -> Path:
    """Where to write metrics: `path`, or the first of path-2, path-3, … without metrics of other settings.

    Args:
        file: the file of metrics in it, where `path` is a folder.
    """
    stem = path.name.removesuffix(".json")
    numbered = (path.with_name(f"{stem}-{i}{path.name[len(stem) :]}") for i in count(2))
    return next(each for each in chain([path], numbered) if _is_free(each / file, metrics.settings()))


def _is_free(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a file is not there, or holds metrics of the same settings."""
    if not settings or not path.exists():
        return True
    try:
        saved = read_json(path, {})
    except ValueError:
        return False
    wanted = json.loads(json.dumps(settings))  # tuples are lists there
    return bool(wanted == {name: saved.get(name) for name in wanted})
