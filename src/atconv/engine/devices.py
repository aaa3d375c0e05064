"""Which device and precision this machine offers. Predicting needs these, and no accelerate."""

from __future__ import annotations

import torch

from atconv.ops.processor import cpu_has_bf16

__all__ = ["available_precision", "resolve_device"]


def resolve_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is the accelerator of this machine if it has one, else its CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = accelerator.type if accelerator is not None else "cpu"
    if name not in ("auto", "cpu", kind):
        raise ValueError(f"device {name} is not available here ({kind} is); use auto")
    return torch.device(kind if name == "auto" else name)


def available_precision(precision: str, device: str) -> str:
    """The precision to train with where a recipe asks for fp32, bf16 or fp16.

    CPUs train in bf16 in place of fp16; those without instructions for it, where a product in bf16
    takes many times as long, in fp32.
    """
    if device != "cpu" or precision == "fp32":
        return precision
    return "bf16" if cpu_has_bf16() else "fp32"
