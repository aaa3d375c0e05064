"""The optimizer's state through a checkpoint: what follows is what would have followed without one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from atconv.engine.checkpoint import load_checkpoint, save_checkpoint
from atconv.engine.config import TrainConfig
from atconv.engine.distributed import full_optimizer_state, full_state_dict, load_model, load_optimizer
from atconv.engine.optimizer import make_optimizer
from support.helpers import tiny_attnet

OPTIMIZERS = (
    "adamw", "adam", "nadamw", "radam", "sgd", "momentum", "lamb", "lars", "lion", "rmsprop", "rmsproptf",
    "adafactor", "adagrad", "adadelta", "adamp", "adabelief", "adan", "novograd", "sgdp", "laprop", "mars",
    "adopt", "madgrad",
)  # fmt: skip


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        gradients(model, step)
        for group in optimizer.param_groups:  # a schedule
            group["lr"] = 1e-3 * (step + 1) * group.get("lr_scale", 1.0)
        optimizer.step()
        optimizer.zero_grad()


def assert_continues(folder: Path, frozen: str | None = None, **options: Any) -> None:
    config = TrainConfig(**options)
    straight = tiny_attnet().train()
    for name, parameter in straight.named_parameters():
        parameter.requires_grad_(frozen is None or not name.startswith(frozen))
    resumed = copy.deepcopy(straight)
    ours = make_optimizer(straight, config, 1e-3)
    take_steps(straight, ours, range(3))
    state = {"model": full_state_dict(straight), "optimizer": full_optimizer_state(ours)}
    path = save_checkpoint(folder, 3, state)
    take_steps(straight, ours, range(3, 6))

    state = load_checkpoint(path)
    load_model(resumed, state["model"])
    theirs = make_optimizer(resumed, config, 1e-3)
    load_optimizer(theirs, state["optimizer"])
    assert not any(p.grad is not None and p.grad.any() for p in resumed.parameters())
    take_steps(resumed, theirs, range(3, 6))
    for (name, expected), actual in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(actual, expected), name
    assert any(not torch.equal(state["model"][name], p) for name, p in straight.named_parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_continues_bit_by_bit(tmp_path: Path, name: str) -> None:
    assert_continues(tmp_path, optimizer=name)


@pytest.mark.parametrize(
    "options",
    [
        {"layer_decay": 0.6},
        {"precision": "fp16"},  # not fused
        {"betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.3},
        {"frozen": "stages"},
        {"frozen": "stages", "layer_decay": 0.6, "optimizer": "lamb"},
    ],
    ids=lambda options: " ".join(options),
)
def test_groups_and_frozen_parameters_continue_bit_by_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_continues(tmp_path, **options)
