"""Time and memory as images grow: AttNet-T2 and models with attention.

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

__all__ = ["plot", "sizes"]

SIZES = (224, 384, 512, 768, 1024)
NETWORKS = {
    "AttNet-T2": "attnet_t2",
    "ViT-S/16": "vit_small_patch16_224",
    "Swin-T": "swin_tiny_patch4_window7_224",
}


@torch.inference_mode()
def sizes(sizes: Sequence[int] = SIZES, measure_memory: bool = True) -> list[dict[str, Any]]:
    """Seconds of one image, and peak memory above the idle model in a new process, by size."""
    rows = []
    for size in sizes:
        x = images(1, size)
        calls = {label: partial(other(name, size=size), x) for label, name in NETWORKS.items()}
        for label, seconds in median_seconds(calls).items():
            row = {"model": label, "size": size, "seconds": seconds}
            rows.append(row | ({"bytes": _memory(NETWORKS[label], size)} if measure_memory else {}))
    return rows


def _memory(name: str, size: int) -> int:
    command = [sys.executable, str(Path(__file__)), "memory", name, str(size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Nanoseconds a pixel and memory, against the size of the image."""
    matplotlib.use("agg")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, marker in zip(NETWORKS, "osD", strict=True):
        measured = [row for row in rows if row["model"] == name]
        sizes = [row["size"] for row in measured]
        axes[0].plot(
            sizes, [1e9 * row["seconds"] / row["size"] ** 2 for row in measured], f"{marker}-", label=name
        )
        axes[1].plot(sizes, [row["bytes"] / 2**20 for row in measured], f"{marker}-", label=name)
    axes[0].set(
        ylabel="time, nanoseconds a pixel", title="flat: cost grows as the image does", ylim=(0, None)
    )
    axes[1].set(ylabel="peak memory above the idle model, MiB", title="memory", yscale="log")
    axes[1].set_yticks(ticks := (20, 50, 100, 200, 500), [str(tick) for tick in ticks])
    axes[1].minorticks_off()
    for axis in axes:
        axis.set(xlabel="height and width of one image, pixels", xticks=SIZES)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    _, _, which, size = sys.argv
    tune_allocator()
    with torch.inference_mode():
        print(peak_above(partial(other(which, size=int(size)), images(1, int(size)))))
