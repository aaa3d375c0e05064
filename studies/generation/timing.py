"""Seconds of a training step and of a sample, the families interleaved in one process."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from atconv.deploy.timing import median_seconds
from atconv.diffusion import SiTPipeline
from atconv.engine.devices import available_precision
from atconv.io import write_rows
from atconv.models import create_sit
from atconv.tasks.generation.sampling import SamplerConfig, sample_images
from studies.generation.setup import FAMILIES, GUIDANCE, STEPS, read_recipe
from studies.harness import synchronize

SAMPLES = 50  # in one batch


def measure(args: Namespace) -> None:
    """Write timing.csv: medians for float32, and for bfloat16 where the device computes in it."""
    recipe = read_recipe()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}")
    rows = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if available_precision(precision, args.device.type) != precision:
            continue
        with torch.autocast(args.device.type, dtype, enabled=dtype != torch.float32):
            seconds = median_seconds(_calls(recipe, args.device))
        for family in FAMILIES:
            rows.append(
                {
                    "family": family,
                    "precision": precision,
                    "step_seconds": f"{seconds[family, 'step']:.4f}",
                    "sample_seconds": f"{seconds[family, 'sample'] / SAMPLES:.5f}",
                }
            )
            print(rows[-1], flush=True)
    write_rows(args.out / "timing.csv", rows)


def _calls(recipe: dict[str, Any], device: torch.device) -> dict[tuple[str, str], Callable[[], None]]:
    arguments = dict(recipe["model_args"], in_channels=1, num_classes=10, learn_sigma=False)
    size, batch = recipe["image_size"], recipe["batch_size"]
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    for family, name in FAMILIES.items():
        model = nn.Module.to(create_sit(name, **arguments), device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        calls[family, "step"] = partial(_train_step, model, optimizer, batch, size, device)
        calls[family, "sample"] = partial(_sample, SiTPipeline(model, sample_size=[size, size]), device)
    return calls


def _train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: int, size: int, device: torch.device
) -> None:
    model.train()
    x, target = torch.randn(2, batch, 1, size, size, device=device)
    t, labels = torch.rand(batch, device=device), torch.randint(10, (batch,), device=device)
    loss = F.mse_loss(model(x, t, labels), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    synchronize(device)


def _sample(pipeline: SiTPipeline, device: torch.device) -> None:
    options = SamplerConfig(sampler="heun", steps=STEPS, guidance=GUIDANCE)
    sample_images(pipeline, [i % 10 for i in range(SAMPLES)], options, batch_size=SAMPLES)
    synchronize(device)
