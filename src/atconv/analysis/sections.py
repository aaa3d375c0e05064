"""The parts of the page of `atconv analyze`, each with its picture and what was found."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from atconv.analysis import plots as figures
from atconv.analysis.page import Section, Table
from atconv.analysis.subject import Answer, Field, Layer, Subject
from atconv.engine.trainer import inhibition_rows
from atconv.io import read_rows

__all__ = ["SECTIONS", "Material"]

_ENOUGH = 10  # samples a channel from which redundancy is no matter of chance


@dataclass(frozen=True)
class Material:
    """The pictures, and what was measured of each model on them."""

    folder: Path
    """where the report goes"""
    subject: Subject
    labels: Tensor
    named: int
    """pictures whose folder is a class"""
    shown: list[int]
    """positions of the pictures that are drawn"""
    kernels: dict[str, Tensor]
    layers: dict[str, list[Layer]]
    """by the model's name, that of `subject` first"""
    fields: dict[str, list[Field]]
    answers: list[Answer]
    """to the pictures that are drawn"""
    answered_at: str
    """the layer that they were traced to"""

    @property
    def own(self) -> list[Layer]:
        """The layers of `subject` that are ATConv."""
        return [one for one in next(iter(self.layers.values())) if one.is_operator]

    def titles(self) -> list[str]:
        return [self.subject.classes[int(self.labels[i])] for i in self.shown]


def _kernels(material: Material) -> Section:
    shown, layers = material.shown, material.kernels
    pictures, titles = material.subject.pictures(shown), material.titles()
    routed = {one.name: one.routing.total for one in material.own if one.routing is not None}
    layer = max(routed, key=lambda name: routed[name])
    drawn = {n: k if len(k) == 1 else k[shown] for n, k in layers.items()}
    one, all_layers = material.folder / "kernels.png", material.folder / "kernels_by_layer.png"
    label = figures.layer_label(layer)
    figures.draw_kernels(pictures, titles, drawn[layer].expand(len(shown), -1, -1, -1), label, one)
    figures.draw_kernels_by_layer(pictures, titles, drawn, all_layers)
    finding = ""
    if not any(material.subject.routes(one.name) for one in material.own):
        finding = "These kernels are the same for every picture: the model has no routing."
    elif len(material.labels) > 1:
        finding = f"Kernels change most in layer {label}."
    return Section(
        "The kernels",
        "Each square is a kernel: red weights add what lies there, blue ones subtract it. Where columns of "
        "the second picture differ, the layer treats the pictures differently.",
        finding,
        [one, all_layers],
    )


def _routing(material: Material) -> Section | None:
    if len(material.labels) < 2:
        return None
    path = material.folder / "routing.png"
    figures.draw_routing(material.layers, path)
    routed = [one.routing for one in material.own if one.routing is not None]
    total = statistics.mean(one.total for one in routed)
    shares = [one.share_between for one in routed if one.share_between is not None]
    whose = {len(material.labels): "the classes", 0: "classes, as the model names them,"}
    classes = whose.get(material.named, "the classes, some as the model names them,")
    if shares:
        told = f"Beyond what chance would give, {classes} account for {statistics.mean(shares):.0%} of that."
    else:
        told = "What classes account for takes two classes and two pictures of one."
    return Section(
        "Routing: do kernels follow the content?",
        "The variance of kernels from picture to picture, as a share of their mean square weight: 0 for a "
        "static convolution. Blue: explained by the classes, beyond chance (adjusted R²). Orange: pictures "
        "of one class get different kernels. Pictures of a class look alike, so kernels of an untrained "
        "network follow classes too: a share tells of learning only where it is larger than there.",
        f"Averaged over the ATConv layers, kernels vary by {total:.1%} of their mean square weight. {told}",
        [path],
    )


def _inhibition(material: Material) -> Section | None:
    rows = [row for row in read_rows(material.subject.path / "inhibition.csv") if "channels" in row]
    text = (
        "Before a kernel is used, λ times its mean is taken off every weight, so one weight can only win at "
        "the others' expense. λ is learned for each channel and starts at 0.5 (dotted)."
    )
    if not rows:
        now = inhibition_rows(material.subject.model, 1)
        rows = [{name: str(value) for name, value in row.items()} for row in now]
        text += " The run kept no record of its training: this is the final state alone."
    if not rows:
        return None
    path = material.folder / "inhibition.png"
    figures.draw_inhibition(rows, path)
    last = [float(row["mean"]) for row in rows if row["epoch"] == rows[-1]["epoch"]]
    finding = f"After training, the layers' mean λ lies between {min(last):.3f} and {max(last):.3f}."
    return Section("Inhibition: how strongly do weights compete?", text, finding, [path])


def _shapes(material: Material) -> Section | None:
    path = material.folder / "shapes.png"
    shaped = [one for one in material.own if one.kernel is not None]
    if not shaped:  # kernels of 1 × 1 have no shape
        return None
    figures.draw_shapes(material.layers, path)
    pairs = [(one.kernel, one.uninhibited) for one in shaped if one.kernel and one.uninhibited]
    if pairs:
        after = statistics.mean(one.negative_share for one, _ in pairs)
        before = statistics.mean(one.negative_share for _, one in pairs)
        finding = f"{after:.1%} of the weights are negative, {before:.1%} before inhibition."
    else:
        finding = "The model has no inhibition."
    return Section(
        "Inhibition: what it does to the kernels",
        "Signs and sharpness by layer. Kernels with weights of both signs compare a position with its "
        "neighbors; a flat kernel only blurs. Dashed: the same kernels before inhibition. (Kurtosis is "
        "taken around a kernel's mean, which is all that inhibition moves, so it does not change.)",
        finding,
        [path],
    )


def _redundancy(material: Material) -> Section:
    path = material.folder / "redundancy.png"
    figures.draw_redundancy(material.layers, path, _ENOUGH)
    parts = []
    for name, rows in material.layers.items():
        sure = [one.redundancy for one in rows if one.redundancy.samples_per_channel >= _ENOUGH]
        if sure:
            cosine = statistics.mean(one.cosine for one in sure)
            rank = statistics.mean(one.effective_rank for one in sure)
            parts.append(f"{name}: likeness {cosine:.3f}, effective rank {rank:.0%} of the channels")
    found = (
        f"Means over full points. {'; '.join(parts)}." if parts else "Too few pictures to tell: give more."
    )
    return Section(
        "Redundancy: do channels say different things?",
        "Taken over all pictures and positions, behind each token mixer, its output projection included "
        "where it has one (a plain depthwise convolution has none). Likeness is 1 where all channels are "
        "multiples of one and 0 where all are orthogonal; the effective rank says how many channels' worth "
        f"of different content there is. Hollow points have fewer than {_ENOUGH} values a channel: part of "
        "them is chance.",
        found,
        [path],
    )


def _fields(material: Material) -> Section | None:
    fields = {name: found for name, found in material.fields.items() if found}
    if not fields:
        return None
    path = material.folder / "receptive_field.png"
    figures.draw_fields(fields, path)
    parts = []
    for name, found in fields.items():
        spreads = found[-1].spreads
        held = f", {spreads['kernels held']:.1f} with its kernels held" if "kernels held" in spreads else ""
        parts.append(f"{name} {spreads['gradient']:.1f} pixels{held}")
    return Section(
        "Effective routing: where does the output look?",
        "The brighter a pixel, the more the middle of a stage's map changes with it, through all layers "
        "before: averaged over pictures, and for one of them. A picture also changes ATConv's kernels, and "
        "through them every position; with the kernels held, only the way of the values is left. For models "
        "with global self-attention, the rollout of each stage's attention weights is shown. The spread r is "
        "the root mean square distance of the light from its own center.",
        f"Spread in the last stage: {'; '.join(parts)}.",
        [path],
    )


def _answers(material: Material) -> Section | None:
    if not material.answers:
        return None
    path = material.folder / "answers.png"
    pictures = material.subject.pictures(material.shown)
    figures.draw_answers(pictures, material.answers, material.titles(), material.answered_at, path)
    return Section(
        "One answer at a time",
        "Each picture with the class it was taken for. Below, bright places speak for that class; where none "
        "is bright, nothing at this stage does by itself.",
        pictures=[path],
    )


def _numbers(material: Material) -> Section:
    rows = []
    for model, layers in material.layers.items():
        for one in layers:
            label = f"{figures.layer_label(one.name)} {one.kind}"
            rows.append([model, label, *map(_cell, _row(one))])
    heads = [
        "model", "layer", "routing variance", "by classes", "λ", "negative", "entropy", "kurtosis",
        "likeness", "effective rank",
    ]  # fmt: skip
    text = "The figures behind the pictures; analysis.json holds them too. Shares are of 1."
    return Section("The numbers", text, table=Table(heads, rows))


def _row(one: Layer) -> list[float | None]:
    routing, kernel = one.routing, one.kernel
    return [
        routing.total if routing else None,
        routing.share_between if routing else None,
        one.inhibition,
        kernel.negative_share if kernel else None,
        kernel.entropy if kernel else None,
        kernel.kurtosis if kernel else None,
        one.redundancy.cosine,
        one.redundancy.effective_rank,
    ]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


SECTIONS: list[Callable[[Material], Section | None]] = [
    _kernels, _routing, _inhibition, _shapes, _redundancy, _fields, _answers, _numbers,
]  # fmt: skip
