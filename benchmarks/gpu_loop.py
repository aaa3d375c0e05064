"""The training loop compared with its bare step, and how many images a core prepares for it."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_models import make_backbone, training_step
from gpu_timing import Row, Setup

__all__ = ["loop"]

Case = tuple[str, Callable[[], Row]]

BATCH, STEPS = 128, 60


def loop(setup: Setup) -> Iterator[Case]:
    """AttNet-T2 at 224² on synthetic images."""
    yield "trainer", lambda: _trainer(setup)
    yield "loader, one core", lambda: _loader(setup, (500, 375), "full")
    yield "loader, one core, large JPEGs", lambda: _loader(setup, (2000, 1500), "full")
    yield "loader, one core, large JPEGs reduced", lambda: _loader(setup, (2000, 1500), "reduced")


def _trainer(setup: Setup) -> Row:
    """Images a second of `Trainer` on batches in pinned memory, and of the same step alone."""
    from accelerate.state import AcceleratorState

    from atconv.engine.config import TrainConfig
    from atconv.engine.distributed import make_accelerator
    from atconv.engine.run import Run
    from atconv.engine.trainer import Task, Trainer

    batch, steps, size = (2, 3, 32) if setup.trial else (BATCH, STEPS, 224)

    class Synthetic(Task):
        """The same few batches over and over."""

        samples = batch * steps

        def __init__(self, run: Run, accelerator: Any) -> None:
            self.run, self.accelerator = run, accelerator
            self.model = make_backbone(setup, "AttNet-T2").to(memory_format=torch.channels_last)
            layout = torch.channels_last
            images = [torch.randn(batch, 3, size, size).contiguous(memory_format=layout) for _ in range(4)]
            pin = setup.device.type == "cuda"
            self.images = [image.pin_memory() for image in images] if pin else images

        def batches(self, plan: Any, epoch: int, start: int) -> Iterator[Any]:
            return itertools.cycle((image, torch.arange(batch) % 10) for image in self.images)

        def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
            images, labels = batch
            return F.cross_entropy(model(images), labels), {}

        def evaluate(self, model: nn.Module) -> dict[str, float]:
            return {}

        def save_config(self) -> None: ...

        def save_model(self, model: nn.Module) -> None: ...

        def report(self, history: Any) -> None: ...

    x = torch.randn(batch, 3, size, size, device=setup.device).contiguous(memory_format=torch.channels_last)
    bare = setup.seconds(training_step(setup, make_backbone(setup, "AttNet-T2").to(
        setup.device, memory_format=torch.channels_last), x))  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            epochs=2, batch_size=batch, base_batch_size=batch, precision="bf16", ema_decay=0.0,
            device=setup.device.type, tracker="none", warmup_epochs=0.0,
        )  # fmt: skip
        accelerator = make_accelerator(config, folder)
        run = Run(Path(folder))
        run.checkpoints.mkdir()
        history = Trainer(Synthetic(run, accelerator), config).fit()
    rate = history.rows[-1]["images_per_second"]  # of the second epoch
    return {"trainer images/s": rate, "bare images/s": batch / bare, "share": rate * bare / batch}


def _loader(setup: Setup, size: tuple[int, int], way: str) -> Row:
    """Images a second that one process reads and augments: JPEGs to crops of 224²."""
    from loading import ways_to_load, write_images  # needs lmdb, which is not everywhere

    count = 4 if setup.trial else 24
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), count, size)
        load = ways_to_load(Path(folder))[way]
        load(0)
        started = time.perf_counter()
        for i in range(count):
            load(i)
        return {"images/s": count / (time.perf_counter() - started)}
