"""Plots of what `atconv.analysis` measures. Each function returns a matplotlib Figure, legible at 100 %."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from atconv.analysis.explanation import Explanation
from atconv.analysis.features import evenly_spaced
from atconv.analysis.probe import LayerMeasures, StageField

__all__ = [
    "layer_label",
    "plot_explanations",
    "plot_inhibition",
    "plot_kernel_shapes",
    "plot_kernels",
    "plot_kernels_by_layer",
    "plot_receptive_fields",
    "plot_redundancy",
    "plot_routing",
]

Pixels = NDArray[np.uint8]
"""an image, H W or H W 3"""

_Panel = tuple[str, str, Callable[[Any], float]]
"""title, unit, and the number that is plotted for a value of a line"""
_Line = tuple[str, dict[str, Any], Mapping[str, Any]]
"""label, style, and a value for each layer"""

_MAX_LAYERS = 8
_MAX_WIDTH = 10.6  # inches
_MAX_EXPLAINED = 6  # images in a row of explanations
_literal_text = rc_context({"text.parse_math": False})  # a class or a run may be called "$"


def layer_label(name: str) -> str:
    """ "stages.2.blocks.0.token_mixer" → "3.1", stage and block counted from 1; other names unchanged."""
    match = re.match(r"stages\.(\d+)(?:\.blocks\.(\d+))?", name)
    if match is None:
        return name
    return ".".join(str(int(part) + 1) for part in match.groups() if part is not None)


@_literal_text
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
    figure, axes = _grid(
        f"Kernels made for each image, layer {layer}{changing}",
        rows, columns, (1.25 * columns + 1.2, max(3.6, 1.3 * rows + 1.3)),
    )  # fmt: skip
    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        _show_image(axes[row, 0], image)
        axes[row, 0].set_ylabel(title, fontsize=10)
    for column, channel in enumerate(shown, 1):
        axes[0, column].set_title(f"channel {channel}", fontsize=8)
        _show_kernels(axes[:, column], values[:, channel])
    _weight_bar(figure, axes, axes[0, -1], "weight, relative to the channel's largest")
    return figure


@_literal_text
def plot_kernels_by_layer(
    images: Sequence[Pixels], titles: Sequence[str], kernels: Mapping[str, Tensor]
) -> Figure:
    """The kernel that each layer made for each image, in the layer's channel that changes most.

    Args:
        images: H W or H W 3 each.
        titles: one for each image.
        kernels: B C K K (1 C K K for a static kernel) by layer.
    """
    shown = evenly_spaced(list(kernels), _MAX_LAYERS)
    rows, columns = len(shown) + 1, len(images)
    which = "each layer" if len(shown) == len(kernels) else f"{len(shown)} of {len(kernels)} layers"
    figure, axes = _grid(
        f"One kernel of {which} (rows)\nfor each image (columns)",
        rows, columns, (max(5.6, min(1.15 * columns + 2.2, _MAX_WIDTH)), 1.1 * rows + 0.9),
    )  # fmt: skip
    for axis, image, title in zip(axes[0], images, titles, strict=True):
        _show_image(axis, image)
        axis.set_title(title, fontsize=8)
    for row, name in enumerate(shown, 1):
        values = kernels[name].float().cpu().numpy()
        values = np.broadcast_to(values, (columns, *values.shape[1:]))
        channel = int(_most_changing(values)[0])
        axes[row, 0].set_ylabel(f"layer {layer_label(name)}\nchannel {channel}", fontsize=8)
        _show_kernels(axes[row], values[:, channel])
    _weight_bar(figure, axes, axes[-1, 0], "weight, relative to the row's largest")
    return figure


@_literal_text
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
    figure, axes = _grid(
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
        axis.set_title(_model_label(model), fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        _layer_axis(axis, [name for name, _ in rows])
    axes[0, 0].set_ylabel("variance, % of the mean square weight")
    axes[0, 0].set_ylim(0, max(1.0, axes[0, 0].get_ylim()[1]))
    _legend(figure, axes[0, 0])
    return figure


@_literal_text
def plot_kernel_shapes(layers: Mapping[str, Sequence[LayerMeasures]]) -> Figure:
    """Signs and sharpness of kernels by layer, with lateral inhibition and before it.

    Args:
        layers: from `measure_layers`, by the model's name.
    """
    lines: list[_Line] = []
    for color, (model, rows) in enumerate(layers.items()):
        label, style = _model_label(model), {"marker": "o", "color": f"C{color}"}
        before = {layer.name: layer.kernel_before_inhibition for layer in rows}
        lines.append((label, style, {layer.name: layer.kernel for layer in rows}))
        lines.append((f"{label}, before inhibition", style | {"linestyle": "--", "alpha": 0.55}, before))
    panels: list[_Panel] = [
        ("Weights below zero", "% of weights", lambda shape: 100 * shape.negative_share),
        ("Flatness", "entropy over its maximum: 1 is flat", lambda shape: shape.entropy),
        ("Peakedness", "kurtosis: high if one stands out", lambda shape: shape.kurtosis),
    ]
    return _plot_by_layer("Shape of the kernels, by layer", panels, lines)


@_literal_text
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
        lines.append((_model_label(model), style, {layer.name: layer.redundancy for layer in rows}))
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


@_literal_text
def plot_inhibition(strengths: Mapping[str, Mapping[int, Sequence[float]]]) -> Figure:
    """λ = sigmoid(α) over training: a panel for each layer, a thin line for each channel.

    Args:
        strengths: layer → epoch → λ of each channel.
    """
    shown = evenly_spaced(list(strengths), _MAX_LAYERS)
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = _grid(
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
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis in axes.flat[len(shown) - columns : len(shown)]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("λ: 0 subtracts nothing, 1 the full mean", fontsize=9)
    return figure


_VIEWS = {
    "gradient": "by gradients",
    "one image": "one image",
    "fixed kernels": "fixed kernels",
    "attention": "attention rollout",
}


@_literal_text
def plot_receptive_fields(fields: Mapping[str, Sequence[StageField]]) -> Figure:
    """Which pixels the center of each stage's map depends on: a row for each model and view.

    Args:
        fields: from `stage_fields`, by the model's name.
    """
    rows = [
        (f"{_model_label(model)}\n{label}", view, stages)
        for model, stages in fields.items()
        for view, label in _VIEWS.items()
        if any(view in field.views for field in stages)
    ]
    columns = max(len(stages) for stages in fields.values())
    figure, axes = _grid(
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
            title = f"{_stage_label(field.stage)}, {size}: r = {field.radii[view]:.1f}"
            axis.set_title(title, fontsize=8)
        line[0].set_ylabel(label, fontsize=9)
    _clear_ticks(axes)
    figure.colorbar(shown, ax=axes, shrink=0.7, aspect=40, label="share of the maximum (square-root scale)")
    return figure


@_literal_text
def plot_explanations(
    images: Sequence[Pixels], explanations: Sequence[Explanation], labels: Sequence[str], layer: str
) -> Figure:
    """Each image above the places that support its predicted class.

    Args:
        images: H W or H W 3 each, as the model sees them.
        explanations: from `explain`.
        labels: the true class of each.
        layer: the end of a stage, to which the predictions were traced.
    """
    columns = min(len(explanations), _MAX_EXPLAINED)
    lines = -(-len(explanations) // columns)
    figure, axes = _grid(
        f"What supports the prediction (after {_stage_label(layer)}: "
        f"{' × '.join(map(str, explanations[0].map.shape))} positions)",
        2 * lines, columns, (max(5.6, 1.5 * columns + 1.1), 0.75 + 3.0 * lines),
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
        wrong = "" if label == explanation.predicted else f"\nis {_shorten(label)}"
        title = f"{_shorten(explanation.predicted)}\n{100 * explanation.probability:.0f} %{wrong}"
        above.set_title(title, fontsize=8)
    _clear_ticks(axes)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="support: 0 none, 1 most")
    return figure


def _grid(
    title: str, rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure with rows × columns axes."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


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
    figure, axes = _grid(title, 1, len(panels), (9.4, 4.0))
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


def _stage_label(name: str) -> str:
    """ "stages.2" → "stage 3"; other names unchanged."""
    label = layer_label(name)
    return label if label == name else f"stage {label}"


def _model_label(name: str) -> str:
    """A model's name in a plot: matplotlib hides labels that begin with an underscore."""
    return _shorten(f" {name}" if name.startswith("_") else name, 22)


def _shorten(name: str, length: int = 18) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
