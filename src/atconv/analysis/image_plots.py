"""Plots of what the operator does to single images: kernels, receptive fields, explanations. Each function
returns a matplotlib Figure, legible at 100 %."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from atconv.analysis.explanation import Explanation
from atconv.analysis.features import evenly_spaced
from atconv.analysis.plots import (
    MAX_LAYERS,
    grid,
    layer_label,
    literal_text,
    model_label,
    shorten,
    stage_label,
)
from atconv.analysis.probe import StageField

__all__ = ["plot_explanations", "plot_kernels", "plot_kernels_by_layer", "plot_receptive_fields"]

Pixels = NDArray[np.uint8]
"""an image, H W or H W 3"""

_MAX_WIDTH = 10.6  # inches
_MAX_EXPLAINED = 6  # images in a row of explanations


@literal_text
def plot_kernels(
    images: Sequence[Pixels], titles: Sequence[str], kernels: Tensor, layer: str, channels: int = 6
) -> Figure:
    """Each image with the kernels that one layer made for it.

    Shows the channels whose kernels change most from image to image; red weights add, blue ones subtract;
    each channel (column) has one color scale.

    Args:
        images: H W or H W 3 each.
        titles: one for each image.
        kernels: B C K K, from `collect_kernels`.
        layer: its name, for the title.
    """
    values = kernels.float().cpu().numpy()
    shown = _most_changing(values)[:channels]
    rows, columns = len(images), len(shown) + 1
    changing = "\nchannels that change most" if np.ptp(values, axis=0).any() else ""
    figure, axes = grid(
        f"Kernels made for each image, layer {layer}{changing}",
        rows, columns, (1.25 * columns + 1.2, max(3.6, 1.3 * rows + 1.3)),
    )  # fmt: skip
    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        _show_image(axes[row, 0], image)
        axes[row, 0].set_ylabel(shorten(title), fontsize=10)
    for column, channel in enumerate(shown, 1):
        axes[0, column].set_title(f"channel {channel}", fontsize=8)
        _show_kernels(axes[:, column], values[:, channel])
    _weight_bar(figure, axes, axes[0, -1], "weight, relative to the channel's largest")
    return figure


@literal_text
def plot_kernels_by_layer(
    images: Sequence[Pixels], titles: Sequence[str], kernels: Mapping[str, Tensor]
) -> Figure:
    """The kernel that each layer made for each image, in the layer's channel that changes most.

    Args:
        images: H W or H W 3 each.
        titles: one for each image.
        kernels: B C K K (1 C K K for a static kernel) by layer.
    """
    shown = evenly_spaced(list(kernels), MAX_LAYERS)
    rows, columns = len(shown) + 1, len(images)
    which = "each layer" if len(shown) == len(kernels) else f"{len(shown)} of {len(kernels)} layers"
    figure, axes = grid(
        f"One kernel of {which} (rows)\nfor each image (columns)",
        rows, columns, (max(5.6, min(1.15 * columns + 2.2, _MAX_WIDTH)), 1.1 * rows + 0.9),
    )  # fmt: skip
    for axis, image, title in zip(axes[0], images, titles, strict=True):
        _show_image(axis, image)
        axis.set_title(shorten(title, 15), fontsize=8)
    for row, name in enumerate(shown, 1):
        values = kernels[name].float().cpu().numpy()
        values = np.broadcast_to(values, (columns, *values.shape[1:]))
        channel = int(_most_changing(values)[0])
        axes[row, 0].set_ylabel(f"layer {layer_label(name)}\nchannel {channel}", fontsize=8)
        _show_kernels(axes[row], values[:, channel])
    _weight_bar(figure, axes, axes[-1, 0], "weight, relative to the row's largest")
    return figure


_VIEWS = {
    "gradient": "by gradients",
    "one image": "one image",
    "fixed kernels": "fixed kernels",
    "attention": "attention rollout",
}


@literal_text
def plot_receptive_fields(fields: Mapping[str, Sequence[StageField]]) -> Figure:
    """Which pixels the center of each stage's map depends on: a row for each model and view.

    Args:
        fields: from `stage_fields`, by the model's name.
    """
    rows = [
        (f"{model_label(model)}\n{label}", view, stages)
        for model, stages in fields.items()
        for view, label in _VIEWS.items()
        if any(view in field.views for field in stages)
    ]
    columns = max(len(stages) for stages in fields.values())
    figure, axes = grid(
        "Which pixels the center of each stage's map depends on (r: radius in pixels)",
        len(rows), columns, (2.1 * columns + 1.4, 2.25 * len(rows) + 0.6),
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    for line, (label, view, stages) in zip(axes, rows, strict=True):
        for axis, field in zip(line, stages, strict=False):
            axis.axis("on")
            if view not in field.views:
                axis.text(0.5, 0.5, "no global\nself-attention", ha="center", va="center", fontsize=8)
                continue
            shares = field.views[view].numpy()
            shown = axis.imshow(shares / (shares.max() or 1.0), cmap="magma", norm=PowerNorm(0.5, 0, 1))
            size = "{} × {}".format(*field.map_size)
            title = f"{stage_label(field.stage)}, {size}: r = {field.radii[view]:.1f}"
            axis.set_title(title, fontsize=8)
        line[0].set_ylabel(label, fontsize=9)
    _clear_ticks(axes)
    figure.colorbar(shown, ax=axes, shrink=0.7, aspect=40, label="share of the maximum (square-root scale)")
    return figure


@literal_text
def plot_explanations(
    images: Sequence[Pixels], explanations: Sequence[Explanation], labels: Sequence[str], layer: str | None
) -> Figure:
    """Each image above the places that support its predicted class.

    Args:
        images: H W or H W 3 each, as the model sees them.
        explanations: from `explain`.
        labels: the true class of each.
        layer: the end of a stage, to which the predictions were traced; None for attention rollout.
    """
    columns = min(len(explanations), _MAX_EXPLAINED)
    lines = -(-len(explanations) // columns)
    traced = "attention rollout" if layer is None else f"after {stage_label(layer)}"
    figure, axes = grid(
        f"What supports the prediction\n({traced}: "
        f"{' × '.join(map(str, explanations[0].map.shape))} positions)",
        2 * lines, columns, (max(3.6, 1.5 * columns + 1.1), 0.95 + 3.0 * lines),
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    pairs = [pair for line in range(lines) for pair in axes[2 * line : 2 * line + 2].T]
    for (above, below), image, explanation, label in zip(pairs, images, explanations, labels, strict=False):
        height, width = image.shape[:2]
        for axis in (above, below):
            _show_image(axis, image)
        shown = below.imshow(
            explanation.map.float().numpy(), cmap="inferno", alpha=0.6, interpolation="bilinear",
            vmin=0, vmax=1, extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )  # fmt: skip
        wrong = "" if label == explanation.predicted else f"\nis {shorten(label)}"
        title = f"{shorten(explanation.predicted)}\n{100 * explanation.probability:.0f} %{wrong}"
        above.set_title(title, fontsize=8)
    _clear_ticks(axes)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="support: 0 none, 1 most")
    return figure


def _most_changing(values: NDArray[Any]) -> NDArray[np.int64]:
    """Channels of kernels B C K K, those that change most from image to image first."""
    # The median: one image that differs from all others does not make a channel interesting.
    change = np.median(np.abs(values - values.mean(0)).mean((2, 3)), axis=0)
    return np.argsort(-change / np.maximum(np.abs(values).max((0, 2, 3)), 1e-30), kind="stable")


def _show_image(axis: Axes, image: Pixels) -> None:
    axis.imshow(image, cmap="gray" if image.ndim == 2 else None)


def _show_kernels(axes: Iterable[Axes], kernels: NDArray[Any]) -> None:
    """Kernels, one for each of the axes, on one scale."""
    limit = float(np.abs(kernels).max()) or 1.0
    for axis, kernel in zip(axes, kernels, strict=True):
        axis.imshow(kernel / limit, cmap="RdBu_r", vmin=-1, vmax=1)


def _weight_bar(figure: Figure, axes: NDArray[Any], kernel: Axes, label: str) -> None:
    _clear_ticks(axes)
    bar = figure.colorbar(kernel.images[0], ax=axes, shrink=0.6, label=label)
    bar.set_ticks([-1, 0, 1], labels=["−1", "0", "+1"])


def _clear_ticks(axes: NDArray[Any]) -> None:
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
