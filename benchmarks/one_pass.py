"""Seconds of one pass of a model in a process of its own, with the allocator tuned or not.

python benchmarks/one_pass.py ConvNeXt-T
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from atconv import tune_allocator
from models import OTHERS, attnet, images, other

__all__ = ["ONE_PASS"]

ONE_PASS: dict[str, Callable[[], nn.Module]] = {
    "AttNet-T2": attnet,
    "ConvNeXt-T": lambda: other(OTHERS["ConvNeXt-T"]),
}
"""ours, and another"""


@torch.inference_mode()
def main(name: str) -> None:
    tune_allocator()
    model, x, taken = ONE_PASS[name](), images(8), []
    for _ in range(5):
        started = time.perf_counter()
        model(x)
        taken.append(time.perf_counter() - started)
    print(statistics.median(taken[2:]))


if __name__ == "__main__":
    main(sys.argv[1])
