"""The loop on the CPU, and on a GPU where there is one: what is resumed ends as what was not interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from atconv.engine.batch_plan import BatchPlan
from atconv.engine.config import TrainConfig
from atconv.engine.distributed import make_accelerator, release_accelerator
from atconv.engine.history import History
from atconv.engine.run import Run
from atconv.engine.task import Task
from atconv.engine.trainer import Callback, Trainer
from support.helpers import tiny_attnet

BATCH, STEPS = 8, 20


class Noise(Task):
    """A small AttNet learns the labels of random images."""

    samples = BATCH * STEPS

    def __init__(self, run: Run, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        self.model = tiny_attnet(drop_path_rate=0.1)

    def batches(self, plan: BatchPlan, epoch: int, start: int) -> Iterator[Any]:
        for i in range(start, STEPS):
            generator = torch.Generator().manual_seed(STEPS * epoch + i)
            yield torch.randn(BATCH, 3, 32, 32, generator=generator), torch.arange(BATCH) % 5

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        return F.cross_entropy(model(images), labels), {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {}

    def save_config(self) -> None: ...

    def save_model(self, model: nn.Module) -> None: ...

    def report(self, history: History) -> None: ...


class Interrupt(Callback):
    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.step > 30:
            raise KeyboardInterrupt


def fit(folder: Path, device: str, precision: str, callbacks: list[Callback]) -> dict[str, Tensor]:
    config = TrainConfig(
        epochs=2, batch_size=BATCH, base_batch_size=BATCH, precision=precision, ema_decay=0.9,
        device=device, tracker="none", warmup_epochs=0.5, checkpoint_steps=7, clip_grad=1.0,
    )  # fmt: skip
    run = Run(folder)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(config, str(folder))
    trainer = Trainer(Noise(run, accelerator), config, callbacks)
    try:
        trainer.fit()
    finally:
        release_accelerator(accelerator)
    return {name: tensor.cpu() for name, tensor in trainer.ema_model.state_dict().items()}


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "fp32"),
        *(pytest.param("cuda", precision, marks=pytest.mark.cuda) for precision in ("fp32", "bf16", "fp16")),
    ],
)
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    device: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda":  # atomic additions of cuDNN would make two equal runs differ
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    expected = fit(tmp_path / "straight", device, precision, [])
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "resumed", device, precision, [Interrupt()])
    actual = fit(tmp_path / "resumed", device, precision, [])
    for name, tensor in expected.items():
        assert bool(torch.isfinite(tensor).all())
        assert torch.equal(actual[name], tensor), name
