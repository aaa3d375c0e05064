"""Seconds of a training step and of a sample, the families by turns in one process."""

from __future__ import annotations

import csv
import statistics
import time
from typing import Any

import torch
from families import FAMILIES, GUIDANCE, HERE, STEPS, read_recipe
from torch import nn
from torch.nn import functional as F

from atconv import tune_allocator
from atconv.diffusion.samplers import SamplerConfig
from atconv.models import create_sit
from atconv.tasks.generation import SiTPipeline

ROUNDS, WARM_UP = 7, 2
DRAWN = 50  # samples in one batch


def make_models(recipe: dict[str, Any]) -> dict[str, nn.Module]:
    arguments = dict(recipe["model_args"], in_channels=1, num_classes=10, learn_sigma=False)
    return {family: create_sit(model, **arguments) for family, model in FAMILIES.items()}


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: int, side: int) -> None:
    x, target = torch.randn(2, batch, 1, side, side)
    loss = F.mse_loss(model(x, torch.rand(batch), torch.randint(10, (batch,))), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def draw(model: nn.Module, side: int) -> None:
    pipeline = SiTPipeline(model, sample_size=[side, side])
    options = SamplerConfig(sampler="heun", steps=STEPS, guidance=GUIDANCE)
    for _ in pipeline.draw([i % 10 for i in range(DRAWN)], options, batch_size=DRAWN):
        pass


def measure() -> None:
    """Write timing.csv: medians over rounds, for float32 and bfloat16."""
    tuned = tune_allocator()
    recipe = read_recipe()
    side, batch = recipe["image_size"], recipe["batch_size"]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, allocator tuned: {tuned}")
    rows = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        models = make_models(recipe)
        optimizers = {family: torch.optim.AdamW(model.parameters(), 1e-4) for family, model in models.items()}
        steps: dict[str, list[float]] = {family: [] for family in models}
        samples: dict[str, list[float]] = {family: [] for family in models}
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            for turn in range(WARM_UP + ROUNDS):
                for family, model in models.items():
                    started = time.perf_counter()
                    training_step(model, optimizers[family], batch, side)
                    between = time.perf_counter()
                    draw(model, side)
                    ended = time.perf_counter()
                    if turn >= WARM_UP:
                        steps[family].append(between - started)
                        samples[family].append((ended - between) / DRAWN)
        for family in models:
            step, sample = statistics.median(steps[family]), statistics.median(samples[family])
            rows.append(
                {
                    "family": family,
                    "precision": precision,
                    "step_seconds": f"{step:.4f}",
                    "sample_seconds": f"{sample:.5f}",
                }
            )
            print(rows[-1], flush=True)
    with (HERE / "timing.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
