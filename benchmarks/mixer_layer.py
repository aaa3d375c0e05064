"""Seconds of one mixer layer, ATConv beside self-attention and a static depthwise mixer.

All candidates of a row run in turn in one process (A B C A B C …); medians after warm-up. Run it on an
otherwise idle machine:

    make bench

Prints a Markdown table with the machine it was measured on.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F
from machine import machine_line
from torch import Tensor, nn

from atconv import ATConv2d

DIM = 128
SIZES = (14, 28, 56)
BATCH = 4
ROUNDS = 9
WARM_UP = 3


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions of a map, 32 channels a head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // 32
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(2, (3, self.heads, 32)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        return self.proj(mixed).transpose(1, 2).unflatten(2, (height, -1))


def candidates() -> dict[str, nn.Module]:
    return {
        "ATConv": ATConv2d(DIM),
        "self-attention": SelfAttention(DIM),
        "static depthwise 3×3": ATConv2d(DIM, routing=False, inhibition=False),
    }


def seconds(mixer: nn.Module, x: Tensor, train: bool) -> float:
    started = time.perf_counter()
    if train:
        mixer(x).sum().backward()
    else:
        with torch.inference_mode():
            mixer(x)
    return time.perf_counter() - started


def measure(size: int, dtype: torch.dtype, train: bool) -> dict[str, float]:
    """Median seconds of each candidate, measured in turn."""
    x = torch.randn(BATCH, DIM, size, size, dtype=dtype, requires_grad=train)
    mixers = {name: mixer.to(dtype) for name, mixer in candidates().items()}
    taken: dict[str, list[float]] = {name: [] for name in mixers}
    for turn in range(WARM_UP + ROUNDS):
        for name, mixer in mixers.items():
            elapsed = seconds(mixer, x, train)
            if turn >= WARM_UP:
                taken[name].append(elapsed)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    torch.manual_seed(0)
    print(f"# One mixer layer, batch {BATCH}, {DIM} channels\n")
    print(machine_line())
    print(f"Medians of {ROUNDS}, in milliseconds.\n")
    names = list(candidates())
    print("| dtype | pass | map | " + " | ".join(names) + " | attention ÷ ATConv |")
    print("| --- | --- | --- |" + " --- |" * (len(names) + 1))
    for dtype in (torch.float32, torch.bfloat16):
        for train in (False, True):
            for size in SIZES:
                found = measure(size, dtype, train)
                ratio = found["self-attention"] / found["ATConv"]
                cells = " | ".join(f"{1000 * found[name]:.2f}" for name in names)
                kind = "forward and backward" if train else "inference"
                print(f"| {str(dtype)[6:]} | {kind} | {size}² | {cells} | {ratio:.2f} × |", flush=True)


if __name__ == "__main__":
    main()
