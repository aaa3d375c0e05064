"""One mixer layer alone, by map size: ATConv, its plain transcription, attention, a static convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from atconv import ATConv2d
from atconv.deploy.timing import median_seconds
from atconv.mixers import create_mixer
from plain import PlainATConv

__all__ = ["SIZES", "operators", "plot"]

DIM = 64
SIZES = (14, 28, 56, 112, 256)
MAX_POSITIONS = 112**2  # that attention is trained on: a round at 256² would take half a minute
NAMES = ("ATConv", "plain ATConv", "self-attention", "window attention 7×7", "static depthwise 3×3")


def _mixers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    ours = ATConv2d(DIM)
    made = (
        ours,
        PlainATConv(ours),
        create_mixer("attention", DIM),
        create_mixer("window_attention", DIM),
        create_mixer("atconv", DIM, routing=False, inhibition=False),
    )
    return dict(zip(NAMES, made, strict=True))


def operators(dtype: torch.dtype, sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """Seconds of forward, and of forward and backward, for one map of 64 channels, channels last."""
    mixers = {name: mixer.to(dtype) for name, mixer in _mixers().items()}
    rows = []
    for size in sizes:
        x = torch.randn(1, DIM, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
        ours, transcribed = (mixers[name](x).float() for name in NAMES[:2])
        assert (ours - transcribed).norm() < (1e-5 if dtype == torch.float32 else 3e-2) * ours.norm()
        calls: dict[tuple[str, bool], Callable[[], None]] = {}
        for name, mixer in mixers.items():
            calls[name, False] = partial(_forward, mixer, x)
            if name != "self-attention" or size**2 <= MAX_POSITIONS:
                calls[name, True] = partial(_train, mixer, x.detach().clone().requires_grad_())
        for (name, trained), seconds in median_seconds(calls).items():
            rows.append({"mixer": name, "size": size, "backward": trained, "seconds": seconds})
    return rows


@torch.inference_mode()
def _forward(mixer: nn.Module, x: Tensor) -> None:
    mixer(x)


def _train(mixer: nn.Module, x: Tensor) -> None:
    mixer(x).sum().backward()


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Milliseconds against the size of the map."""
    matplotlib.use("agg")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
    for axis, backward in zip(axes, (False, True), strict=True):
        for name, marker in zip(NAMES, "osD^v", strict=True):
            own = [row for row in rows if row["mixer"] == name and row["backward"] == backward]
            sizes = [row["size"] for row in own]
            axis.plot(sizes, [1000 * row["seconds"] for row in own], f"{marker}-", label=name)
        axis.set(xscale="log", yscale="log", xlabel="height and width of one map, positions")
        axis.set_title("forward and backward" if backward else "forward")
        axis.set_xticks(SIZES, [str(size) for size in SIZES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"milliseconds, {DIM} channels")
    axes[0].legend(fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
