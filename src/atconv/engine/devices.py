"""One accelerate `Accelerator` for one process, many processes, CPU or GPU."""

from __future__ import annotations

import importlib.util
import os
import platform
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState

from atconv.engine.config import LoopConfig
from atconv.engine.run import resolve_device

__all__ = ["available_precision", "cpu_has_bf16", "make_accelerator", "release_accelerator"]


def make_accelerator(config: LoopConfig, tracking_folder: str) -> Accelerator:
    """Build the Accelerator a configuration asks for.

    Several processes come from torchrun: gloo on CPU, NCCL on GPUs. Where a recipe asks for a
    precision that the device lacks, `available_precision` takes its place, and that is said.

    Raises:
        ValueError: the device is not there, the tracker not installed, or FSDP asked for elsewhere.
        RuntimeError: the launcher started several processes and accelerate sees another number.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
        raise ValueError(
            "an accelerate configuration asks for FSDP, whose shards this loop does not see: start with "
            "torchrun and give --shard true"
        )
    device = resolve_device(config.device).type
    if config.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ValueError("tracker wandb needs its package: pip install wandb")
    precision = available_precision(config.precision, device)
    if precision != config.precision and os.environ.get("RANK", "0") == "0":
        print(f"this CPU has no fast {config.precision}: training in {precision}")
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


def available_precision(precision: str, device: str) -> str:
    """The precision to train with where a recipe asks for fp32, bf16 or fp16.

    CPUs train in bf16 in place of fp16; those without instructions for it, where a product in bf16
    takes many times as long, in fp32.
    """
    if device != "cpu" or precision == "fp32":
        return precision
    return "bf16" if cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for products in bfloat16.

    oneDNN says yes on every x86 CPU with AVX-512, and computes a product in bfloat16 four times as slowly as
    in float32 on those that have AVX-512 alone.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def release_accelerator(accelerator: Accelerator) -> None:
    """Close trackers and the process group, so that another run in this process starts afresh."""
    accelerator.end_training()
    AcceleratorState._reset_state(reset_partial_state=True)  # else the next precision or device is refused
    GradientState._reset_state()
