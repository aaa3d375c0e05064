"""Pictures of what `atconv.analysis` measures: titles, units and color bars, readable at 100 %."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from atconv.analysis.features import spread
from atconv.analysis.subject import Answer, Field, Layer
from atconv.plots import plt, save, shorten

__all__ = [
    "draw_answers",
    "draw_fields",
    "draw_inhibition",
    "draw_kernels",
    "draw_kernels_by_layer",
    "draw_redundancy",
    "draw_routing",
    "draw_shapes",
    "layer_label",
]

Picture = NDArray[np.uint8]
"""H W or H W 3"""

_SHOWN_LAYERS = 8


def layer_label(name: str) -> str:
    """ "stages.2.blocks.0.token_mixer" → "3.1", stage and block counted from 1; other names as they are."""
    match = re.match(r"stages\.(\d+)(?:\.blocks\.(\d+))?", name)
    if match is None:
        return name
    return ".".join(str(int(part) + 1) for part in match.groups() if part is not None)


def _stage_title(name: str) -> str:
    """ "stages.2" → "stage 3"; other names as they are."""
    label = layer_label(name)
    return label if label == name else f"stage {label}"


def draw_kernels(
    pictures: Sequence[Picture],
    titles: Sequence[str],
    kernels: Tensor,
    layer: str,
    path: Path,
    channels: int = 6,
) -> None:
    """Draw each picture with the kernels that one layer made for it.

    Shows the channels whose kernels change most from picture to picture; red weights add, blue ones
    subtract; each channel (column) has one color scale.

    Args:
        pictures: H W or H W 3.
        titles: one for each picture.
        kernels: B C K K, from `collect_kernels`.
        layer: its name, for the title.
        path: PNG to write.
    """
    values = kernels.float().cpu().numpy()
    chosen = _most_changing(values)[:channels]
    count = len(pictures)
    size = (1.25 * (len(chosen) + 1) + 1.2, max(3.6, 1.3 * count + 1.3))
    figure, axes = plt.subplots(count, len(chosen) + 1, figsize=size, squeeze=False, layout="constrained")
    which = "\nchannels that change most" if np.ptp(values, axis=0).any() else ""
    figure.suptitle(f"Kernels made for each picture, layer {layer}{which}", fontsize=11)
    for row in range(count):
        _show_picture(axes[row, 0], pictures[row])
        axes[row, 0].set_ylabel(titles[row], fontsize=10)
        for column, channel in enumerate(chosen, 1):
            limit = float(np.abs(values[:, channel]).max()) or 1.0
            image = axes[row, column].imshow(values[row, channel], cmap="RdBu_r", vmin=-limit, vmax=limit)
            if row == 0:
                axes[row, column].set_title(f"channel {channel}", fontsize=8)
    _clear_ticks(axes)
    _weight_bar(figure, image, axes, limit, "weight, relative to the channel's largest")
    save(figure, path)


def draw_kernels_by_layer(
    pictures: Sequence[Picture], titles: Sequence[str], kernels: Mapping[str, Tensor], path: Path
) -> None:
    """Draw the kernel that each layer made for each picture, in the layer's channel that changes most.

    Args:
        pictures: H W or H W 3.
        titles: one for each picture.
        kernels: B C K K (1 C K K for a static kernel) by layer.
        path: PNG to write.
    """
    shown = spread(list(kernels), _SHOWN_LAYERS)
    columns = len(pictures)
    rows = len(shown) + 1
    size = (max(5.6, 1.15 * columns + 2.2), 1.1 * rows + 0.9)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    which = "each layer" if len(shown) == len(kernels) else f"{len(shown)} of {len(kernels)} layers"
    figure.suptitle(f"One kernel of {which} (rows)\nas it was made for each picture (columns)", fontsize=11)
    for column in range(columns):
        _show_picture(axes[0, column], pictures[column])
        axes[0, column].set_title(titles[column], fontsize=8)
    for row, name in enumerate(shown, 1):
        values = kernels[name].float().cpu().numpy()
        values = np.broadcast_to(values, (columns, *values.shape[1:]))
        channel = int(_most_changing(values)[0])
        limit = float(np.abs(values[:, channel]).max()) or 1.0
        for column in range(columns):
            image = axes[row, column].imshow(values[column, channel], cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes[row, 0].set_ylabel(f"layer {layer_label(name)}\nchannel {channel}", fontsize=8)
    _clear_ticks(axes)
    _weight_bar(figure, image, axes, limit, "weight, relative to the row's largest")
    save(figure, path)


def draw_routing(layers: Mapping[str, Sequence[Layer]], path: Path) -> None:
    """Draw how much kernels vary with the picture, layer by layer: a panel for each model.

    Args:
        layers: from `Subject.measure`, by the model's name.
        path: PNG to write.
    """
    panels = {model: [one for one in rows if one.routing is not None] for model, rows in layers.items()}
    panels = {model: rows for model, rows in panels.items() if rows}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(min(9.6, 1.8 + 4.2 * len(panels)), 4.0), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    figure.suptitle("How much kernels change with the picture", fontsize=11)
    for axis, (model, rows) in zip(axes[0], panels.items(), strict=True):
        found = [one.routing for one in rows if one.routing is not None]
        between = [100 * one.total * (one.share_between or 0.0) for one in found]
        rest = [100 * one.total - share for one, share in zip(found, between, strict=True)]
        told = any(one.share_between is not None for one in found)
        if told:
            axis.bar(range(len(found)), between, label="explained by the class", color="C0")
        label = "within a class" if told else "all of it"
        axis.bar(range(len(found)), rest, bottom=between, label=label, color="C1")
        _layer_axis(axis, [one.name for one in rows])
        axis.set_title(_model(model), fontsize=10)
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("variance, % of the mean square weight")
    axes[0, 0].set_ylim(0, max(1.0, axes[0, 0].get_ylim()[1]))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    save(figure, path)


def draw_shapes(layers: Mapping[str, Sequence[Layer]], path: Path) -> None:
    """Draw signs and sharpness of kernels by layer, with lateral inhibition and as they were before it.

    Args:
        layers: from `Subject.measure`, by the model's name.
        path: PNG to write.
    """
    panels = [
        ("Weights below zero", "% of weights", lambda shape: 100 * shape.negative_share),
        ("Flatness", "entropy over its greatest: 1 is flat", lambda shape: shape.entropy),
        ("Peakedness", "kurtosis: 1.8 is even, more: one stands out", lambda shape: shape.kurtosis),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(9.4, 4.0), layout="constrained")
    figure.suptitle("Shape of the kernels, by layer", fontsize=11)
    names = _all_names([one for one in rows if one.kernel] for rows in layers.values())
    for axis, (title, unit, figure_of) in zip(axes, panels, strict=True):
        for color, (model, rows) in enumerate(layers.items()):
            after = {one.name: figure_of(one.kernel) for one in rows if one.kernel}
            before = {one.name: figure_of(one.uninhibited) for one in rows if one.uninhibited}
            told = {
                "o-": (after, 1.0, _model(model)),
                "o--": (before, 0.55, f"{_model(model)}, before inhibition"),
            }
            for style, (values, alpha, label) in told.items():
                if values:
                    places = [names.index(name) for name in values]
                    axis.plot(places, values.values(), style, color=f"C{color}", alpha=alpha, label=label)
        _layer_axis(axis, names)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit, fontsize=9)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    save(figure, path)


def draw_redundancy(layers: Mapping[str, Sequence[Layer]], path: Path, enough: float) -> None:
    """Draw how much the channels behind each token mixer say the same.

    Args:
        layers: from `Subject.measure`, by the model's name.
        path: PNG to write.
        enough: values a channel below which a point is hollow.
    """
    panels = [
        ("Likeness of channels", "mean |cosine| of two channels", lambda one: one.redundancy.cosine),
        (
            "Effective rank",
            "% of the number of channels",
            lambda one: 100 * one.redundancy.effective_rank,
        ),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(9.0, 4.0), layout="constrained")
    figure.suptitle("Redundancy of what each token mixer puts out", fontsize=11)
    names = _all_names(layers.values())
    for axis, (title, unit, figure_of) in zip(axes, panels, strict=True):
        for color, (model, rows) in enumerate(layers.items()):
            places, values = [names.index(one.name) for one in rows], [figure_of(one) for one in rows]
            sure = [one.redundancy.samples_per_channel >= enough for one in rows]
            axis.plot(places, values, "-", color=f"C{color}", label=_model(model))
            fills = [f"C{color}" if full else "white" for full in sure]
            axis.scatter(places, values, c=fills, edgecolors=f"C{color}", zorder=3)
        _layer_axis(axis, names)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path)


def draw_inhibition(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw λ = sigmoid(α) over training: a panel for each layer, a thin line for each channel.

    Args:
        rows: of a run's inhibition.csv.
        path: PNG to write.
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    shown = spread(layers, _SHOWN_LAYERS)
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.35 * columns + 0.6, 2.1 * lines + 0.8), squeeze=False, sharex=True,
        sharey=True, layout="constrained",
    )  # fmt: skip
    figure.suptitle(
        "Strength of lateral inhibition over training, each channel (thin) and their mean", fontsize=11
    )
    for axis, layer in zip(axes.flat, shown, strict=False):
        mine = [row for row in rows if row["layer"] == layer]
        epochs = [int(row["epoch"]) for row in mine]
        channels = np.array([[int(value) / 1000 for value in row["channels"].split()] for row in mine])
        marker = "." if len(epochs) == 1 else None  # one epoch has no line
        axis.plot(epochs, channels, color="C0", alpha=0.25, linewidth=0.7, marker=marker)
        axis.plot(epochs, channels.mean(1), color="C3", linewidth=2, marker=marker)
        axis.axhline(0.5, color="black", linewidth=0.7, linestyle=":")
        axis.set_title(f"layer {layer_label(layer)}", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("λ: 0 none, 1 the whole mean is taken off", fontsize=9)
    save(figure, path)


_VIEWS = {
    "gradient": "by gradients",
    "one picture": "one picture",
    "kernels held": "kernels held",
    "attention": "attention rollout",
}


def draw_fields(fields: Mapping[str, Sequence[Field]], path: Path) -> None:
    """Draw where the middle of each stage's map takes its value from: a row for each model and view.

    Args:
        fields: from `Subject.fields`, by the model's name.
        path: PNG to write.
    """
    rows: list[tuple[str, list[tuple[Field, Tensor | None, str]]]] = []
    for model, stages in fields.items():
        for kind, told in _VIEWS.items():
            if any(kind in field.views for field in stages):
                cells = [(field, field.views.get(kind), kind) for field in stages]
                rows.append((f"{_model(model)}\n{told}", cells))
    columns = max(len(cells) for _, cells in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(2.1 * columns + 1.4, 2.25 * len(rows) + 0.6), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    figure.suptitle("Where the middle of each stage takes its value from (r: spread, pixels)", fontsize=11)
    for line, (label, cells) in enumerate(rows):
        axes[line, 0].set_ylabel(label, fontsize=9)
        for axis, (field, shown, kind) in zip(axes[line], cells, strict=False):
            if shown is None:
                axis.text(0.5, 0.5, "no global\nself-attention here", ha="center", va="center", fontsize=8)
                continue
            height, width = field.map_size
            share = shown / shown.max() if float(shown.max()) else shown
            image = axis.imshow(share.numpy(), cmap="magma", norm=PowerNorm(0.5, 0, 1))
            axis.set_title(
                f"{_stage_title(field.stage)}, {height} × {width}: r = {field.spreads[kind]:.1f}",
                fontsize=8,
            )
        for axis in axes[line][len(cells) :]:
            axis.axis("off")
    _clear_ticks(axes)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the greatest (square-root scale)")
    save(figure, path)


def draw_answers(
    pictures: Sequence[Picture],
    answers: Sequence[Answer],
    truths: Sequence[str],
    layer: str,
    path: Path,
) -> None:
    """Draw each picture above the places that speak for the class it was taken for.

    Args:
        pictures: H W or H W 3, as the model sees them.
        answers: from `Subject.answers`.
        truths: the class of each.
        layer: the end of a stage, where the answer was traced to.
        path: PNG to write.
    """
    columns = len(answers)
    figure, axes = plt.subplots(
        2, columns, figsize=(max(5.6, 1.5 * columns + 1.1), 3.75), squeeze=False, layout="constrained"
    )
    height, width = answers[0].where.shape
    figure.suptitle(
        f"What speaks for the answer (seen after {_stage_title(layer)}: {height} × {width} positions)",
        fontsize=11,
    )
    for column, (picture, answer, truth) in enumerate(zip(pictures, answers, truths, strict=True)):
        side = picture.shape[:2]
        frame = (-0.5, side[1] - 0.5, side[0] - 0.5, -0.5)
        for axis in axes[:, column]:
            _show_picture(axis, picture)
        image = axes[1, column].imshow(
            answer.where.float().numpy(), cmap="inferno", alpha=0.6, extent=frame, interpolation="bilinear",
            vmin=0, vmax=1,
        )  # fmt: skip
        wrong = "" if truth == answer.name else f"\nis {shorten(truth)}"
        axes[0, column].set_title(
            f"{shorten(answer.name)}\n{100 * answer.probability:.0f} %{wrong}", fontsize=8
        )
    _clear_ticks(axes)
    figure.colorbar(image, ax=axes, shrink=0.7, label="speaks for it: 0 no, 1 most")
    save(figure, path)


def _most_changing(values: NDArray[Any]) -> NDArray[np.int64]:
    """Channels of kernels B C K K, those that change most from picture to picture first."""
    # The median: one picture that differs from all others does not make a channel interesting.
    change = np.median(np.abs(values - values.mean(0)).mean((2, 3)), axis=0)
    return np.argsort(-change / np.maximum(np.abs(values).max((0, 2, 3)), 1e-30), kind="stable")


def _all_names(models: Iterable[Iterable[Layer]]) -> list[str]:
    """Names of the layers of several models, each once, in order of depth."""
    names = list(dict.fromkeys(one.name for rows in models for one in rows))
    return sorted(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])


def _layer_axis(axis: Axes, names: Sequence[str]) -> None:
    places = list(range(0, len(names), -(-len(names) // 14)))
    labels = [layer_label(names[i]) for i in places]
    axis.set_xticks(places, labels, fontsize=8, rotation=90 if max(map(len, labels)) > 4 else 0)
    axis.set_xlabel("layer (stage.block)" if re.fullmatch(r"[\d.]+", labels[0]) else "layer", fontsize=9)


def _model(name: str) -> str:
    """A model's name beside a plot: matplotlib hides names that begin with an underscore."""
    return shorten(f" {name}" if name.startswith("_") else name, 22)


def _show_picture(axis: Axes, picture: Picture) -> None:
    axis.imshow(picture, cmap="gray" if picture.ndim == 2 else None)


def _clear_ticks(axes: NDArray[Any]) -> None:
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])


def _weight_bar(figure: Any, image: Any, axes: NDArray[Any], limit: float, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.6, label=label)
    bar.set_ticks([-limit, 0, limit], labels=["−1", "0", "+1"])
