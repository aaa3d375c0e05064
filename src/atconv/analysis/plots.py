"""Plots of what `atconv.analysis` measures by layer. Each function returns a matplotlib Figure, legible at
100 %."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from atconv.analysis.features import evenly_spaced
from atconv.analysis.probe import LayerMeasures

__all__ = [
    "layer_label",
    "plot_inhibition",
    "plot_kernel_shapes",
    "plot_redundancy",
    "plot_routing",
]

_Panel = tuple[str, str, Callable[[Any], float]]
"""title, unit, and the number that is plotted for a value of a line"""
_Line = tuple[str, dict[str, Any], Mapping[str, Any]]
"""label, style, and a value for each layer"""

MAX_LAYERS = 8
literal_text = rc_context({"text.parse_math": False})  # a class or a run may be called "$"


def layer_label(name: str) -> str:
    """ "stages.2.blocks.0.token_mixer" → "3.1", stage and block counted from 1; other names unchanged."""
    match = re.match(r"stages\.(\d+)(?:\.blocks\.(\d+))?", name)
    if match is None:
        return name
    return ".".join(str(int(part) + 1) for part in match.groups() if part is not None)


@literal_text
def plot_routing(layers: Mapping[str, Sequence[LayerMeasures]]) -> Figure:
    """How much kernels vary with the image, by layer: a panel for each model.

    Args:
        layers: from `measure_layers`, by the model's name.
    """
    panels = {
        model: [(layer.name, layer.routing) for layer in rows if layer.routing is not None]
        for model, rows in layers.items()
    }
    panels = {model: rows for model, rows in panels.items() if rows}
    figure, axes = grid(
        "How much kernels change with the image",
        1, len(panels), (min(9.6, 1.8 + 4.2 * len(panels)), 4.0), sharey=True,
    )  # fmt: skip
    for axis, (model, rows) in zip(axes[0], panels.items(), strict=True):
        between = [100 * routing.total * (routing.share_between or 0.0) for _, routing in rows]
        rest = [100 * routing.total - share for (_, routing), share in zip(rows, between, strict=True)]
        by_class = any(routing.share_between is not None for _, routing in rows)
        if by_class:
            axis.bar(range(len(rows)), between, label="explained by the class", color="C0")
        label = "within a class" if by_class else "total"
        axis.bar(range(len(rows)), rest, bottom=between, label=label, color="C1")
        axis.set_title(model_label(model), fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        _layer_axis(axis, [name for name, _ in rows])
    axes[0, 0].set_ylabel("variance, % of the mean square weight")
    axes[0, 0].set_ylim(0, max(1.0, axes[0, 0].get_ylim()[1]))
    _legend(figure, axes[0, 0])
    return figure


@literal_text
def plot_kernel_shapes(layers: Mapping[str, Sequence[LayerMeasures]]) -> Figure:
    """Signs and sharpness of kernels by layer, with lateral inhibition and before it.

    Args:
        layers: from `measure_layers`, by the model's name.
    """
    lines: list[_Line] = []
    for color, (model, rows) in enumerate(layers.items()):
        label, style = model_label(model), {"marker": "o", "color": f"C{color}"}
        before = {layer.name: layer.kernel_before_inhibition for layer in rows}
        lines.append((label, style, {layer.name: layer.kernel for layer in rows}))
        lines.append((f"{label}, before inhibition", style | {"linestyle": "--", "alpha": 0.55}, before))
    panels: list[_Panel] = [
        ("Weights below zero", "% of weights", lambda shape: 100 * shape.negative_share),
        ("Flatness", "entropy over its maximum: 1 is flat", lambda shape: shape.entropy),
        ("Peakedness", "kurtosis: high if one stands out", lambda shape: shape.kurtosis),
    ]
    return _plot_by_layer("Shape of the kernels, by layer", panels, lines)


@literal_text
def plot_redundancy(layers: Mapping[str, Sequence[LayerMeasures]], min_samples: float) -> Figure:
    """How similar the channels of each token mixer's output are.

    Args:
        layers: from `measure_layers`, by the model's name.
        min_samples: values per channel below which a point is hollow.
    """
    lines: list[_Line] = []
    for color, (model, rows) in enumerate(layers.items()):
        style = {"marker": "o", "color": f"C{color}"}
        few = [layer for layer in rows if layer.redundancy.samples_per_channel < min_samples]
        lines.append((model_label(model), style, {layer.name: layer.redundancy for layer in rows}))
        hollow = style | {"linestyle": "none", "markerfacecolor": "white"}
        lines.append(("_", hollow, {layer.name: layer.redundancy for layer in few}))
    panels: list[_Panel] = [
        ("Cosine similarity of channels", "mean |cosine| of two channels", lambda layer: layer.cosine),
        ("Effective rank", "% of the number of channels", lambda layer: 100 * layer.effective_rank),
    ]
    figure = _plot_by_layer("Redundancy of each token mixer's output", panels, lines)
    for axis in figure.axes:
        axis.set_ylim(bottom=0)
    return figure


@literal_text
def plot_inhibition(strengths: Mapping[str, Mapping[int, Sequence[float]]]) -> Figure:
    """λ = sigmoid(α) over training: a panel for each layer, a thin line for each channel.

    Args:
        strengths: layer → epoch → λ of each channel.
    """
    shown = evenly_spaced(list(strengths), MAX_LAYERS)
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = grid(
        "Strength of lateral inhibition over training: channels (thin) and their mean",
        rows, columns, (2.35 * columns + 0.6, 2.1 * rows + 0.8), sharex=True, sharey=True,
    )  # fmt: skip
    for axis, layer in zip(axes.flat, shown, strict=False):
        epochs, channels = list(strengths[layer]), np.array(list(strengths[layer].values()))
        marker = "." if len(epochs) == 1 else None  # a single epoch has no line
        axis.plot(epochs, channels, color="C0", alpha=0.25, linewidth=0.7, marker=marker)
        axis.plot(epochs, channels.mean(1), color="C3", linewidth=2, marker=marker)
        axis.axhline(0.5, color="black", linewidth=0.7, linestyle=":")
        axis.set_title(f"layer {layer_label(layer)}", fontsize=9)
        axis.xaxis.set_major_locator(
            FixedLocator(epochs) if len(epochs) == 1 else MaxNLocator(integer=True, nbins=5)
        )
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis in axes.flat[len(shown) - columns : len(shown)]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("λ: 0 subtracts nothing, 1 the full mean", fontsize=9)
    return figure


def grid(
    title: str, rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure with rows × columns axes."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _plot_by_layer(title: str, panels: Sequence[_Panel], lines: Sequence[_Line]) -> Figure:
    """A panel for each measure, in which lines run over the layers of models; layers without a value are
    left out."""
    lines = [(label, style, {n: v for n, v in values.items() if v}) for label, style, values in lines]
    lines = [line for line in lines if line[2]]
    # "stages.10.…" splits into "stages.", 10, "…": text and numbers alternate, so that names compare.
    names = sorted(
        {name for _, _, values in lines for name in values},
        key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
    )
    figure, axes = grid(title, 1, len(panels), (9.4, 4.0))
    for axis, (heading, unit, measure) in zip(axes[0], panels, strict=True):
        for label, style, values in lines:
            places = [names.index(name) for name in values]
            axis.plot(places, [measure(value) for value in values.values()], label=label, **style)
        axis.set_title(heading, fontsize=10)
        axis.set_ylabel(unit, fontsize=9)
        axis.grid(alpha=0.3)
        _layer_axis(axis, names)
    _legend(figure, axes[0, 0])
    return figure


def _layer_axis(axis: Axes, names: Sequence[str]) -> None:
    places = list(range(0, len(names), -(-len(names) // 14)))
    labels = [layer_label(names[i]) for i in places]
    axis.set_xticks(places, labels, fontsize=8, rotation=90 if max(map(len, labels)) > 4 else 0)
    axis.set_xlabel("layer (stage.block)" if re.fullmatch(r"[\d.]+", labels[0]) else "layer", fontsize=9)


def _legend(figure: Figure, axis: Axes) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)


def stage_label(name: str) -> str:
    """ "stages.2" → "stage 3"; other names unchanged."""
    label = layer_label(name)
    return label if label == name else f"stage {label}"


def model_label(name: str) -> str:
    """A model's name in a plot: matplotlib hides labels that begin with an underscore."""
    return shorten(f" {name}" if name.startswith("_") else name, 22)


def shorten(name: str, length: int = 18) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
