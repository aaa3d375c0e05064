"""The page of `atconv analyze`: one self-contained HTML file of texts, plots and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

from atconv.analysis import Explanation, LayerMeasures, StageField, image_plots, plots
from atconv.analysis.probe import has_routing
from atconv.engine.progress import progress
from atconv.html_page import embedded_image, html_table, write_page
from atconv.modules import inhibition_strength
from atconv.plots import save

__all__ = ["ReportData", "write_report"]

_MIN_SAMPLES = 10  # values per channel from which redundancy is hardly due to chance


@dataclass(frozen=True)
class ReportData:
    """What was measured of a run and of those it is compared with."""

    run: Path
    model: nn.Module
    from_folders: int
    """images whose folder is a class"""
    count: int
    """images in total"""
    shown: list[int]
    """positions of the images on the page; the next three are of these"""
    pixels: list[Any]
    titles: list[str]
    kernels: Mapping[str, Tensor]
    layers: dict[str, list[LayerMeasures]]
    """by the model's name, the analyzed one first"""
    fields: dict[str, list[StageField]]
    inhibition: dict[str, dict[int, list[float]]]
    """λ of each channel by layer and epoch, as the run recorded it"""
    explanations: list[Explanation]
    """of the images on the page"""
    explained_at: str

    @property
    def atconv_layers(self) -> list[LayerMeasures]:
        """The ATConv layers of the analyzed model."""
        return [layer for layer in next(iter(self.layers.values())) if layer.is_atconv]


@dataclass(frozen=True)
class Section:
    """A part of the page: what it is about, the finding for this run, plots by file name, a table."""

    title: str
    text: str
    finding: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    table: Sequence[Sequence[str]] = ()


def write_report(data: ReportData, folder: Path) -> Path:
    """Write index.html, which contains its plots, and the plots as files; returns index.html."""
    made = [make(data) for make in progress(_SECTIONS, "plotting")]
    sections = [section for section in made if section is not None]
    for name in _OPTIONAL_PLOTS:  # of an earlier analysis
        (folder / name).unlink(missing_ok=True)
    for section in sections:
        for name, figure in section.figures.items():
            save(figure, folder / name)
    title = f"What the operator does: {data.run}"
    parts = [(section.title, _html(section, folder)) for section in sections]
    return write_page(folder / "index.html", title, _introduction(data), parts)


def _html(section: Section, folder: Path) -> str:
    finding = f"<p class='finding'>{escape(section.finding)}</p>" if section.finding else ""
    images = "".join(embedded_image((folder / name).read_bytes(), section.title) for name in section.figures)
    return f"<p>{escape(section.text)}</p>{finding}{images}{html_table(section.table, text_columns=2)}"


def _introduction(data: ReportData) -> str:
    if data.from_folders == data.count:
        source = "Classes are the names of the images' folders."
    elif data.from_folders == 0:
        source = "The classes of the images are the model's predictions."
    else:
        source = f"{data.from_folders} have their folder's class, the others the model's prediction."
    images = "one image" if data.count == 1 else f"{data.count} images"
    return (
        f"A trained {type(data.model).__name__} and {images}. {source} ATConv makes a small kernel for every "
        "image and channel: a weighted sum of a position and its neighbors. This page shows how these "
        "kernels follow the content (routing), how their weights compete (inhibition), and the results."
    )


def _kernels(data: ReportData) -> Section:
    count = len(data.shown)
    routing = {layer.name: layer.routing.total for layer in data.atconv_layers if layer.routing is not None}
    layer = max(routing, key=lambda name: routing[name])
    label, kernels = plots.layer_label(layer), data.kernels[layer].expand(count, -1, -1, -1)
    finding = ""
    if not has_routing(data.model):
        finding = "These kernels are the same for every image: the model has no routing."
    elif data.count > 1:
        finding = f"Kernels change most in layer {label}."
    return Section(
        "The kernels",
        "Each square is a kernel: red weights add the value at their place, blue ones subtract it. Where "
        "columns of the second plot differ, the layer treats the images differently.",
        finding,
        {
            "kernels.png": image_plots.plot_kernels(data.pixels, data.titles, kernels, label),
            "kernels_by_layer.png": image_plots.plot_kernels_by_layer(data.pixels, data.titles, data.kernels),
        },
    )


def _routing(data: ReportData) -> Section | None:
    if data.count < 2:
        return None
    routing = [layer.routing for layer in data.atconv_layers if layer.routing is not None]
    shares = [layer.share_between for layer in routing if layer.share_between is not None]
    classes = {data.count: "the classes", 0: "the predicted classes"}.get(
        data.from_folders, "the classes, some of them predicted,"
    )
    explained = "The share that classes explain needs two classes and two images of one."
    if shares:
        explained = f"Beyond chance, {classes} explain {mean(shares):.0%} of that."
    return Section(
        "Routing: do kernels follow the content?",
        "The variance of kernels from image to image, as a share of their mean square weight: 0 for a "
        "static convolution. Blue: explained by the classes, beyond chance (adjusted R²). Orange: images "
        "of one class get different kernels. Images of a class look alike, so kernels of an untrained "
        "network follow classes too: a share shows learning only where it is larger than there.",
        f"Averaged over the ATConv layers, kernels vary by {mean(layer.total for layer in routing):.1%} of "
        f"their mean square weight. {explained}",
        {"routing.png": plots.plot_routing(data.layers)},
    )


def _inhibition(data: ReportData) -> Section | None:
    now = inhibition_strength(data.model)
    if not now:
        return None
    text = (
        "Before a kernel is used, λ times its mean is subtracted from every weight, so one weight can only "
        "win at the others' expense. λ is learned for each channel and starts at 0.5 (dotted)."
    )
    if not data.inhibition:
        text += " The run has no record of its training: this is the final state alone."
    means = [float(strength.mean()) for strength in now.values()]
    history = data.inhibition or {layer: {1: strength.tolist()} for layer, strength in now.items()}
    return Section(
        "Inhibition: how strongly do weights compete?",
        text,
        f"After training, the layers' mean λ lies between {min(means):.3f} and {max(means):.3f}.",
        {"inhibition.png": plots.plot_inhibition(history)},
    )


def _shapes(data: ReportData) -> Section | None:
    shaped = [layer for layer in data.atconv_layers if layer.kernel is not None]
    if not shaped:  # kernels of 1 × 1 have no shape
        return None
    before = [
        layer.kernel_before_inhibition.negative_share for layer in shaped if layer.kernel_before_inhibition
    ]
    after = [
        layer.kernel.negative_share for layer in shaped if layer.kernel and layer.kernel_before_inhibition
    ]
    finding = "The model has no inhibition."
    if before:
        finding = f"{mean(after):.1%} of the weights are negative, {mean(before):.1%} before inhibition."
    return Section(
        "Inhibition: what it does to the kernels",
        "Signs and sharpness by layer. Kernels with weights of both signs compare a position with its "
        "neighbors; a flat kernel only blurs. Dashed: the same kernels before inhibition. (Kurtosis is "
        "centered on a kernel's mean, and inhibition moves only that, so it does not change.)",
        finding,
        {"shapes.png": plots.plot_kernel_shapes(data.layers)},
    )


def _redundancy(data: ReportData) -> Section:
    parts = []
    for name, rows in data.layers.items():
        enough = [row.redundancy for row in rows if row.redundancy.samples_per_channel >= _MIN_SAMPLES]
        if enough:
            cosine, rank = mean(r.cosine for r in enough), mean(r.effective_rank for r in enough)
            parts.append(f"{name}: cosine similarity {cosine:.3f}, effective rank {rank:.0%} of the channels")
    return Section(
        "Redundancy: are channels similar?",
        "Taken over all images and positions at the output of each token mixer, its output projection "
        "included where it has one (a plain depthwise convolution has none). The cosine similarity is 1 "
        "where all channels are multiples of one and 0 where all are orthogonal; the effective rank is how "
        f"many orthogonal channels would hold as much. Hollow points have fewer than {_MIN_SAMPLES} values "
        "per channel: part of their redundancy is chance.",
        f"Means over full points. {'; '.join(parts)}." if parts else "Too few images to tell: give more.",
        {"redundancy.png": plots.plot_redundancy(data.layers, _MIN_SAMPLES)},
    )


def _receptive_fields(data: ReportData) -> Section | None:
    fields = {name: stages for name, stages in data.fields.items() if stages}
    if not fields:
        return None
    parts = []
    for name, stages in fields.items():
        radii = stages[-1].radii
        fixed = f", {radii['fixed kernels']:.1f} with fixed kernels" if "fixed kernels" in radii else ""
        parts.append(f"{name} {radii['gradient']:.1f} pixels{fixed}")
    return Section(
        "Receptive field: which pixels does the output depend on?",
        "The brighter a pixel, the more the center of a stage's map changes with it, through all layers "
        "before: averaged over images, and for one of them. An image also changes ATConv's kernels, and "
        "through them every position; with fixed kernels, only the dependence through the values is left. "
        "For models with global self-attention, the rollout of each stage's attention weights is shown. The "
        "radius r is the root mean square distance from the field's own center.",
        f"Radius in the last stage: {'; '.join(parts)}.",
        {"receptive_field.png": image_plots.plot_receptive_fields(fields)},
    )


def _explanations(data: ReportData) -> Section | None:
    if not data.explanations:
        return None
    figure = image_plots.plot_explanations(data.pixels, data.explanations, data.titles, data.explained_at)
    return Section(
        "Explanations of single predictions",
        "Each image with its predicted class. Below, bright places support that class; where none is bright, "
        "no place at this stage does so by itself.",
        figures={"explanations.png": figure},
    )


def _numbers(data: ReportData) -> Section:
    header = [
        "model", "layer", "routing variance", "by classes", "λ", "negative", "entropy", "kurtosis",
        "cosine similarity", "effective rank",
    ]  # fmt: skip
    rows = []
    for model, layers in data.layers.items():
        for layer in layers:
            routing, kernel, channels = layer.routing, layer.kernel, layer.redundancy
            values: list[float | None] = [None, None]
            if routing:
                values = [routing.total, routing.share_between]
            values.append(layer.inhibition)
            values += [kernel.negative_share, kernel.entropy, kernel.kurtosis] if kernel else [None] * 3
            values += [channels.cosine, channels.effective_rank]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            rows.append([model, f"{plots.layer_label(layer.name)} {layer.kind}", *cells])
    text = "The numbers behind the plots; analysis.json holds them too. Shares are of 1."
    return Section("The numbers", text, table=[header, *rows])


_SECTIONS: list[Callable[[ReportData], Section | None]] = [
    _kernels, _routing, _inhibition, _shapes, _redundancy, _receptive_fields, _explanations, _numbers,
]  # fmt: skip
_OPTIONAL_PLOTS = ("routing.png", "inhibition.png", "shapes.png", "receptive_field.png", "explanations.png")
