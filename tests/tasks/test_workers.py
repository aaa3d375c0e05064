"""Workers of all tasks start as new processes or forks of a server, as on macOS and from Python 3.14 on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from atconv.engine.batch_plan import plan_batches
from atconv.engine.distributed import make_accelerator, release_accelerator
from atconv.engine.run import Run
from atconv.tasks import TASKS, get_task
from atconv.tasks.detection import DetectionConfig
from atconv.tasks.segmentation import SegmentationConfig
from support.tiny import image_folder, preload_forkserver, reset_accelerate, tiny_config
from support.tiny_dense import DETECT, SEGMENT, annotated_folder
from support.tiny_sit import tiny_run_config


def config_of(task: str, data: Path, **changes: Any) -> Any:
    """A tiny configuration on files."""
    if task in ("detection", "segmentation"):
        annotated_folder(data, 4, 1)
        make, options = (DetectionConfig, DETECT) if task == "detection" else (SegmentationConfig, SEGMENT)
        return make(data=str(data), **(options | changes))
    image_folder(data, {"a": 20, "b": 20})
    make = tiny_config if task == "classification" else tiny_run_config
    return make(data=str(data), test_fraction=0.2, batch_size=4, base_batch_size=4, **changes)


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method(allow_none=True)
    preload_forkserver()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def flat(batch: Any) -> list[torch.Tensor]:
    """All tensors of a batch, in order."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return [tensor for part in parts for tensor in flat(part)]


# Both hand the same to workers, and spawned ones import everything again, which takes long: one task will do.
@pytest.mark.parametrize(
    ("start_method", "name"),
    [*(("forkserver", name) for name in TASKS), ("spawn", "detection")],
    indirect=["start_method"],
)
def test_workers_load_what_this_process_loads(start_method: str, name: str, tmp_path: Path) -> None:
    config, loaded = config_of(name, tmp_path / "data"), []
    reset_accelerate()
    accelerator = make_accelerator(config, str(tmp_path / "run"))
    try:
        task = get_task(name).make_task(config, Run.create(tmp_path / "run"), accelerator)
        plan = plan_batches(config, task.samples, 1, even=task.pairs)
        for config.workers in (0, 1):
            loaded.append(flat(next(task.batches(plan, 0, 0))))
    finally:
        release_accelerator(accelerator)
        reset_accelerate()
    assert loaded[0]
    assert len(loaded[0]) == len(loaded[1])
    assert all(torch.equal(a, b) for a, b in zip(*loaded, strict=True))
