"""Devices and processes: one accelerate `Accelerator` for one process or many, and weights that are split
over them (FSDP).

Checkpoints and the EMA hold full tensors: a sharded run's files are those of any other.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from atconv.engine.config import TrainConfig
from atconv.engine.devices import available_precision, resolve_device

__all__ = [
    "full_optimizer_state",
    "full_state_dict",
    "load_model",
    "load_optimizer",
    "make_accelerator",
    "release_accelerator",
    "shard",
]

logger = logging.getLogger(__name__)


def make_accelerator(config: TrainConfig, tracking_folder: str) -> Accelerator:
    """Build the Accelerator a configuration asks for.

    Several processes come from torchrun: gloo on CPU, NCCL on GPUs. Where a recipe asks for a
    precision that the device lacks, `available_precision` takes its place, and the log says so.

    Raises:
        ValueError: the device is not there, the tracker not installed, or FSDP asked for elsewhere.
        RuntimeError: the launcher started several processes and accelerate sees another number.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
        raise ValueError(
            "an accelerate configuration asks for FSDP, whose shards this loop does not see: start with "
            "torchrun and give --shard"
        )
    device = resolve_device(config.device).type
    if config.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ValueError("tracker wandb needs its package: pip install wandb")
    precision = available_precision(config.precision, device)
    if precision != config.precision and os.environ.get("RANK", "0") == "0":
        logger.info("this CPU has no fast %s: training in %s", config.precision, precision)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=tracking_folder,
        # The first process checks all image files while the others wait.
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(hours=12)),
            DistributedDataParallelKwargs(find_unused_parameters=config.find_unused_parameters),
        ],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise RuntimeError(
            f"the launcher started {launched} processes but accelerate sees {accelerator.num_processes}: "
            "each would train alone. Start with torchrun --nproc_per_node N -m atconv train DATA ..."
        )
    return accelerator


def release_accelerator(accelerator: Accelerator) -> None:
    """Close trackers and the process group, so that another run in this process can start."""
    accelerator.end_training()
    AcceleratorState._reset_state(reset_partial_state=True)  # else the next precision or device is rejected
    GradientState._reset_state()


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


def full_state_dict(model: nn.Module) -> dict[str, Any]:
    """A model's state with every split tensor gathered. All processes must call it."""
    from torch.distributed.checkpoint import state_dict as dcp  # takes long to import

    return dcp.get_model_state_dict(model, options=dcp.StateDictOptions(full_state_dict=True))


def load_model(model: nn.Module, state: dict[str, Any]) -> None:
    """Load a full state into a model, split or not."""
    from torch.distributed.checkpoint import state_dict as dcp

    dcp.set_model_state_dict(model, state, options=dcp.StateDictOptions(full_state_dict=True))


# By hand: torch.distributed.checkpoint.state_dict takes a step to make the state that it then replaces, drops
# state that belongs to no parameter (MADGRAD's counter), and rejects what is neither a tensor nor a number.
def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with every split tensor gathered. All processes must call it."""
    return tree_map_only(DTensor, DTensor.full_tensor, _unwrapped(optimizer).state_dict())


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a full state into an optimizer whose parameters are split or not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_parameter = {
        key: {name: _like(value, parameters[key]) for name, value in values.items()}
        if isinstance(key, int)
        else values
        for key, values in state["state"].items()
    }
    _unwrapped(optimizer).load_state_dict({**state, "state": by_parameter})


def _like(value: Any, parameter: Tensor) -> Any:
    """A tensor split and laid out as the parameter of its shape; anything else as it is.

    Fused optimizers walk through weights and their state in the order of memory, and files hold no layout.
    """
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)
