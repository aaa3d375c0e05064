"""One accelerate `Accelerator` for one process, many processes, CPU or GPU."""

from __future__ import annotations

import importlib.util
import os
from datetime import timedelta

from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState

from atconv.runs import pick_device
from atconv.training.config import LoopConfig

__all__ = ["make_accelerator", "release_accelerator"]


def make_accelerator(config: LoopConfig, tracking_folder: str) -> Accelerator:
    """Build the Accelerator a configuration asks for.

    Several processes come from torchrun: gloo on CPU, NCCL on GPUs. Where a recipe asks for fp16 on a
    CPU, bf16 is used, and said so.

    Raises:
        ValueError: the device is not there, the tracker not installed, or FSDP asked for elsewhere.
        RuntimeError: the launcher started several processes and accelerate sees another number.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
        raise ValueError(
            "an accelerate configuration asks for FSDP, whose shards this loop does not see: start with "
            "torchrun and give --shard true"
        )
    device = pick_device(config.device).type
    if config.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ValueError("tracker wandb needs its package: pip install wandb")
    precision = config.precision
    if precision == "fp16" and device == "cpu":
        precision = "bf16"
        if os.environ.get("RANK", "0") == "0":
            print("precision fp16 needs a GPU: using bf16 on this CPU")
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=tracking_folder,
        # The first process checks all image files while the others wait.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise RuntimeError(
            f"the launcher started {launched} processes but accelerate sees {accelerator.num_processes}: "
            "each would train alone. Start with torchrun --nproc_per_node N -m atconv.cli train DATA ..."
        )
    return accelerator


def release_accelerator(accelerator: Accelerator) -> None:
    """Close trackers and the process group, so that another run in this process starts afresh."""
    accelerator.end_training()
    AcceleratorState._reset_state(reset_partial_state=True)  # else the next precision or device is refused
    GradientState._reset_state()
