"""Weights, gradients and optimizer state split over the processes (FSDP), and put together again.

Checkpoints and the EMA stay whole: a sharded run's files are those of any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["WholeWeights", "load_model", "load_optimizer", "shard", "whole"]


def shard(model: nn.Module, parts: Sequence[nn.Module], accelerator: Accelerator) -> None:
    """Split a model's parameters over all processes, in place. Each of `parts` is gathered when it runs.

    Raises:
        ValueError: there is one process only.
    """
    if accelerator.num_processes == 1:
        raise ValueError("shard splits a model over processes, and there is one: start with torchrun")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(state: Any) -> Any:
    """A nested state with every split tensor gathered. All processes must call it."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole(value) for value in state)
    return state


class WholeWeights:
    """What timm's EMA reads of a model, gathered."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        return whole(self.model.state_dict())


@torch.no_grad()
def load_model(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a whole state into a model, split or not."""
    own = model.state_dict()
    model.load_state_dict({name: _like(tensor, own.get(name)) for name, tensor in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state into an optimizer whose parameters are split or not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    split = {
        index: {name: _like(value, parameters[int(index)]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": split})


def _like(value: Any, own: Any) -> Any:
    """A whole tensor split and laid out as our own of its shape; anything else as it is.

    Fused optimizers walk through weights and their state in the order of memory, and files hold no layout.
    """
    if not isinstance(own, Tensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    if isinstance(own, DTensor):
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    return torch.empty_like(own, dtype=value.dtype, device=value.device).copy_(value)
