"""AttNet-T2 at inference: against the floor of its own products, the plain transcription, and other networks.

All models of a table run in turn in one process; medians after warm-up. Run it on an otherwise idle machine:

    python benchmarks/attnet_inference.py               # or make bench

Outputs of every form are compared with the model's before they are timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import timm
import torch
from floor import floor
from machine import machine_line
from timing import by_turns
from torch import Tensor, nn
from transcription import transcribe

from atconv.deploy import fold

NAME = "attnet_t2"
OTHERS = {
    "ConvNeXt-T": "convnext_tiny",
    "Swin-T": "swin_tiny_patch4_window7_224",
    "DeiT-S": "deit_small_patch16_224",
}
SIDE = 224
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def make_attnet() -> nn.Module:
    """With statistics and scales that are not those of a network before training."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, ls_init_value=0.1).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model


def forms(dtype: torch.dtype, others: bool) -> dict[str, nn.Module]:
    """Each model, in the layout it runs best in."""
    attnet = make_attnet()
    found = {
        "AttNet-T2, transcription": transcribe(attnet),
        "AttNet-T2": attnet.to(memory_format=torch.channels_last),
        "AttNet-T2, folded": fold(attnet),
    }
    if others:
        found |= {name: timm.create_model(model).eval() for name, model in OTHERS.items()}
    return {name: model.to(dtype) for name, model in found.items()}


@torch.inference_mode()
def check(models: dict[str, Callable[[Tensor], Tensor]], images: Tensor) -> None:
    """All forms of AttNet compute the same."""
    expected = models["AttNet-T2"](images).float()
    for name, model in models.items():
        if name.startswith("AttNet"):
            error = (model(images).float() - expected).norm() / expected.norm()
            assert error <= TOLERANCE[images.dtype], f"{name}: relative error {error:.1e}"


@torch.inference_mode()
def measure(dtype: torch.dtype, batch: int, compiled: bool, others: bool) -> dict[str, float]:
    """Median seconds of each model."""
    images = torch.randn(batch, 3, SIDE, SIDE, dtype=dtype)
    models: dict[str, Callable[[Tensor], Tensor]] = dict(forms(dtype, others))
    if compiled:
        models = {name: torch.compile(model) for name, model in models.items() if "transcr" not in name}
    check(models, images)
    return by_turns({name: lambda model=model: model(images) for name, model in models.items()})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--mode", nargs="+", default=["eager", "compiled"])
    parser.add_argument("--others", action="store_true")
    options = parser.parse_args()
    print(machine_line())
    for name in options.dtype:
        dtype = getattr(torch, name)
        parts = floor(make_attnet().to(dtype), torch.randn(options.batch, 3, SIDE, SIDE, dtype=dtype))
        total = sum(parts.values())
        told = ", ".join(f"{kind} {1000 * value:.1f}" for kind, value in parts.items())
        print(f"{name} floor {1000 * total:.1f} ms: {told}", flush=True)
        for mode in options.mode:
            found = measure(dtype, options.batch, mode == "compiled", options.others)
            for form, value in found.items():
                print(f"{name} {mode} {form}: {1000 * value:.1f} ms, {value / total:.2f} F", flush=True)


if __name__ == "__main__":
    main()
