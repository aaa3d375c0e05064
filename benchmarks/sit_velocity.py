"""Seconds of one velocity evaluation of SiT-B/2: attention, hybrid and ATConv.

The three take turns in one process (A B C A B C …); medians after warm-up. Run it on an otherwise idle
machine:

    python benchmarks/sit_velocity.py

Prints a Markdown table with the machine it was measured on.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from atconv.deploy.timing import ROUNDS, median_seconds
from atconv.models import SiT, create_sit
from machine import dtypes, machine_line

LATENTS = (32, 64, 128)
NAMES = {"attention": "sit_b_2", "hybrid": "sit_hybrid_b_2", "ATConv": "sit_atconv_b_2"}


def make_models(dtype: torch.dtype) -> dict[str, SiT]:
    """The three families, with no layer left at its initial zeros."""
    torch.manual_seed(0)
    models = {name: create_sit(variant).eval() for name, variant in NAMES.items()}
    for model in models.values():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    # Not SiT.to: diffusers warns there of modules it would keep in float32, of which there are none.
    return {name: nn.Module.to(model, dtype) for name, model in models.items()}


@torch.inference_mode()
def measure(models: dict[str, SiT], size: int, dtype: torch.dtype) -> dict[str, float]:
    """Median seconds of each model on one sample, interleaved."""
    x = torch.randn(1, 4, size, size, dtype=dtype)
    t, label = torch.tensor([0.5]), torch.tensor([7])
    return median_seconds({name: partial(model, x, t, label) for name, model in models.items()})


def main() -> None:
    print("# One velocity evaluation of SiT-B/2, one sample\n")
    print(machine_line())
    print(f"Medians of {ROUNDS} interleaved calls, in milliseconds.\n")
    print("| dtype | latent | tokens | " + " | ".join(NAMES) + " | attention ÷ hybrid | attention ÷ ATConv |")
    print("| --- | --- | --- |" + " --- |" * (len(NAMES) + 2))
    for dtype in dtypes():
        models = make_models(dtype)
        for size in LATENTS:
            medians = measure(models, size, dtype)
            cells = " | ".join(f"{1000 * medians[name]:.1f}" for name in NAMES)
            faster = (medians["attention"] / medians[name] for name in ("hybrid", "ATConv"))
            ratios = " | ".join(f"{ratio:.2f} ×" for ratio in faster)
            print(f"| {str(dtype)[6:]} | {size}² | {size**2 // 4} | {cells} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
