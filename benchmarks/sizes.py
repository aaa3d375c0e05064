"""Time and memory as images grow: AttNet-T2 beside models with attention.

python benchmarks/sizes.py memory attnet_t2 512      # bytes above the idle model, printed
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt

from atconv import tune_allocator
from atconv.deploy.timing import median_seconds
from memory import peak_above
from models import images, other

__all__ = ["draw", "sizes"]

SPLITS = (224, 384, 512, 768, 1024)
NETWORKS = {
    "AttNet-T2": "attnet_t2",
    "ViT-S/16": "vit_small_patch16_224",
    "Swin-T": "swin_tiny_patch4_window7_224",
}


@torch.inference_mode()
def sizes(sides: Sequence[int] = SPLITS, measure_memory: bool = True) -> list[dict[str, Any]]:
    """Seconds of one image, and peak memory above the idle model in a fresh process, by side."""
    rows = []
    for side in sides:
        x = images(1, side)
        calls = {label: partial(other(name, size=side), x) for label, name in NETWORKS.items()}
        for label, seconds in median_seconds(calls).items():
            row = {"model": label, "side": side, "seconds": seconds}
            rows.append(row | ({"bytes": _memory(NETWORKS[label], side)} if measure_memory else {}))
    return rows


def _memory(name: str, side: int) -> int:
    command = [sys.executable, str(Path(__file__)), "memory", name, str(side)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Nanoseconds a pixel and memory, against the side of the image."""
    matplotlib.use("agg")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, marker in zip(NETWORKS, "osD", strict=True):
        measured = [row for row in rows if row["model"] == name]
        sides = [row["side"] for row in measured]
        axes[0].plot(
            sides, [1e9 * row["seconds"] / row["side"] ** 2 for row in measured], f"{marker}-", label=name
        )
        axes[1].plot(sides, [row["bytes"] / 2**20 for row in measured], f"{marker}-", label=name)
    axes[0].set(
        ylabel="time, nanoseconds a pixel", title="flat: cost grows as the image does", ylim=(0, None)
    )
    axes[1].set(ylabel="peak memory above the idle model, MiB", title="memory", yscale="log")
    axes[1].set_yticks(ticks := (20, 50, 100, 200, 500), [str(tick) for tick in ticks])
    axes[1].minorticks_off()
    for axis in axes:
        axis.set(xlabel="side of one square image, pixels", xticks=SPLITS)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    _, _, which, side = sys.argv
    tune_allocator()
    with torch.inference_mode():
        print(peak_above(partial(other(which, size=int(side)), images(1, int(side)))))
