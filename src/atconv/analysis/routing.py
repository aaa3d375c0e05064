"""Adaptive routing made visible: the kernels that ATConv makes from each picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atconv.modules import ATConv2d, ATConvTokens

mpl.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["collect_kernels", "draw_kernels"]


@torch.inference_mode()
def collect_kernels(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The kernels k̂ that every ATConv mixer of a model makes for a batch, by the mixer's name.

    Works for any model that contains the mixers, through hooks, and leaves it as it was.

    Args:
        images: the model's input, batch first.

    Returns:
        B C K K for each mixer (1 C K K for one without routing), in the order they ran.

    Raises:
        ValueError: the model has no ATConv mixer.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, mixer: ATConv2d | ATConvTokens) -> None:
        original = mixer.kernels

        def kernels(x: Tensor) -> Tensor:
            found[name] = original(x)
            return found[name]

        mixer.kernels = kernels  # type: ignore[method-assign]

    mixers = {n: m for n, m in model.named_modules() if isinstance(m, (ATConv2d, ATConvTokens))}
    if not mixers:
        raise ValueError(
            "the model has no ATConv mixer (ATConv2d or ATConvTokens): there are no kernels to show"
        )
    try:
        for name, mixer in mixers.items():
            keep(name, mixer)
        model(images)
    finally:
        for mixer in mixers.values():
            del mixer.kernels
    return found


def draw_kernels(
    pictures: Sequence[NDArray[np.uint8]],
    titles: Sequence[str],
    kernels: Tensor,
    layer: str,
    path: Path,
    channels: int = 6,
) -> None:
    """Draw each picture with the kernels that one layer made for it.

    Shows the channels whose kernels change most from picture to picture; red weights add, blue ones
    subtract; each channel (column) has one colour scale.

    Args:
        pictures: H W or H W 3.
        titles: one for each picture.
        kernels: B C K K, from `collect_kernels`.
        layer: its name, for the title.
        path: PNG to write.
    """
    values = kernels.float().cpu().numpy()
    # The median: one picture that differs from all others does not make a channel interesting.
    change = np.median(np.abs(values - values.mean(0)).mean((2, 3)), axis=0) / np.abs(values).max((0, 2, 3))
    chosen = np.argsort(-change, kind="stable")[:channels]
    count = len(pictures)
    figure, axes = plt.subplots(
        count, len(chosen) + 1, figsize=(1.25 * (len(chosen) + 1) + 1.2, 1.3 * count + 1.3), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    figure.suptitle(f"Kernels made for each picture, layer {layer}\nchannels that change most", fontsize=11)
    for row in range(count):
        axes[row, 0].imshow(pictures[row], cmap="gray" if pictures[row].ndim == 2 else None)
        axes[row, 0].set_ylabel(titles[row], fontsize=10)
        for column, channel in enumerate(chosen, 1):
            limit = float(np.abs(values[:, channel]).max()) or 1.0
            image = axes[row, column].imshow(values[row, channel], cmap="RdBu_r", vmin=-limit, vmax=limit)
            if row == 0:
                axes[row, column].set_title(f"channel {channel}", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    bar = figure.colorbar(image, ax=axes, shrink=0.6, label="weight, relative to the channel's largest")
    bar.set_ticks([-limit, 0, limit], labels=["−1", "0", "+1"])
    figure.savefig(path, dpi=110)
    plt.close(figure)
