"""Processes that have uneven shares of the validation images, or none, train to their end; together they
measure what one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atconv.engine.distributed import make_accelerator, release_accelerator
from atconv.engine.run import Run
from atconv.tasks import get_task, load
from support.tiny import TINY, image_folder, read_rows, reset_accelerate
from support.tiny_dense import DETECT, SEGMENT, annotated_folder, options
from support.tiny_sit import TINY_RUN
from support.torchrun import in_processes

COLUMNS = {
    "classification": ("val_top1", lambda metrics: metrics.top1),
    "detection": ("val_map", lambda metrics: metrics.coco["box_map"]),
    "segmentation": ("val_miou", lambda metrics: metrics.miou),
}
COMMANDS = {"detection": ["detect"], "segmentation": ["segment"], "generation": ["generate"]}
VALUES: dict[str, dict[str, Any]] = {
    "classification": TINY | {"test_fraction": 0.2},
    "detection": DETECT,
    "segmentation": SEGMENT,
    "generation": TINY_RUN | {"test_fraction": 0.2},
}
slow = pytest.mark.slow


def data_of(task: str, folder: Path, val: int) -> Path:
    """A folder with so many validation images."""
    if task in ("detection", "segmentation"):
        return annotated_folder(folder, val=val)
    image_folder(folder / "train", {"a": 12, "b": 12})
    image_folder(folder / "val", {"a": val - 1, "b": 1}, seed=1)
    return folder


def measured_alone(task: str, run: Path) -> tuple[str, float, int]:
    """A column of metrics.csv, what one process measures of it with a run's model, on how many images."""
    predictor = load(run)
    if task != "generation":
        column, value = COLUMNS[task]
        metrics = predictor.evaluate(split="val")
        return column, value(metrics), metrics.images
    reset_accelerate()
    accelerator = make_accelerator(predictor.config, str(run))
    try:
        made: Any = get_task(task).make_task(predictor.config, Run.open(run), accelerator)
        return "val_loss", made.evaluate(predictor.pipeline.transformer)["val_loss"], len(made.val)
    finally:
        release_accelerator(accelerator)
        reset_accelerate()


@pytest.mark.parametrize(
    ("task", "processes", "val"),
    [
        ("classification", 3, 2),
        ("detection", 3, 2),
        ("segmentation", 2, 3),
        ("generation", 3, 2),
        pytest.param("classification", 2, 5, marks=slow),
        pytest.param("detection", 2, 5, marks=slow),
        pytest.param("detection", 3, 4, marks=slow),
        pytest.param("segmentation", 3, 2, marks=slow),
        pytest.param("generation", 2, 3, marks=slow),
    ],
)
def test_processes_with_uneven_and_empty_shares_measure_what_one_does(
    task: str, processes: int, val: int, tmp_path: Path
) -> None:
    data, run = data_of(task, tmp_path / "data", val), tmp_path / "run"
    batch = {"batch_size": 2, "base_batch_size": 2 * processes, "epochs": 1}
    values = {name: value for name, value in VALUES[task].items() if name != "data"}
    arguments = options(values, **batch)
    ended = in_processes(*COMMANDS.get(task, []), "train", data, *arguments, f"--out={run}", count=processes)
    assert ended.code == 0, ended.err
    [row] = read_rows(run / "metrics.csv")
    column, value, images = measured_alone(task, run)
    assert images == val
    assert float(row[column]) == pytest.approx(value, rel=1e-3)
    assert (run / "metrics.json").is_file()
    if task in ("detection", "segmentation"):
        assert (run / "predictions.png").is_file()
