"""`atconv analyze`: what the operator of a trained model does with pictures, in numbers and on a page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import Tensor

from atconv import runs
from atconv.analysis import figures
from atconv.analysis.page import Section, Table, write_page
from atconv.analysis.subject import Field, Layer, Subject
from atconv.images import find_images, read_image
from atconv.training.checkpoint import read_rows, write_atomically
from atconv.training.progress import plain_console, track

__all__ = ["analyze"]

_SHOWN = 6  # pictures drawn
_ROUNDING = 1e-12  # variance of what does not vary


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

    @property
    def own(self) -> list[Layer]:
        return next(iter(self.layers.values()))

    def titles(self) -> list[str]:
        return [self.subject.classes[int(self.labels[i])] for i in self.shown]


def analyze(
    run: str | Path,
    images: Sequence[str],
    out: str | None = None,
    beside: Sequence[str] = (),
    most: int = 64,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    console: Console | None = None,
) -> Path:
    """Show what the operator does with pictures: routing, inhibition, redundancy, receptive field, answers.

    Args:
        run: folder of a classification run whose model contains ATConv.
        images: picture files, folders or globs. A picture's class is its folder's name where the run knows
            it, else what the model says.
        out: folder for the page, its pictures and analysis.json (default: RUN/analysis).
        beside: other runs, such as one with attention or without inhibition, shown beside it.
        most: pictures that are used, spread evenly over those given.
        device: auto, cpu, cuda or mps.
        console: where progress shows.

    Returns:
        index.html.

    Raises:
        FileNotFoundError: no such run, or no pictures.
        ValueError: the run has no ATConv, a run beside it has no known token mixer, no picture can be read,
            or the folder holds something else.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    console, where = console or plain_console(), runs.pick_device(device)
    folder = Path(out) if out is not None else Path(run) / "analysis"
    _check_free(folder)
    pictures = _readable(_spread(find_images(images), most), console)
    names = _names([str(run), *beside])
    subjects = {name: Subject(path, pictures, where) for name, path in names.items()}
    subject = next(iter(subjects.values()))
    if not subject.has_operator:
        kinds = ", ".join(sorted({type(subject.model.get_submodule(n)).__name__ for n in subject.layers}))
        raise ValueError(
            f"{run} does not contain ATConv, its token mixers are {kinds}: give such a run after --beside"
        )
    material = _measure(folder, subjects, [path.parent.name for path in pictures], console)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_summary(material), indent=1, ensure_ascii=False)
    write_atomically(folder / "analysis.json", lambda path: path.write_text(text, encoding="utf-8"))
    page = _write(material, len(pictures), console)
    console.print(f"written to {page}", soft_wrap=True)
    return page


def _measure(
    folder: Path, subjects: Mapping[str, Subject], folders: Sequence[str], console: Console
) -> Material:
    subject = next(iter(subjects.values()))
    labels, named = subject.labels(folders)
    kernels = {name: one.kernels() for name, one in subjects.items()}
    layers, fields = {}, {}
    for name, one in track(subjects.items(), console, "measuring", len(subjects)):
        layers[name] = one.measure(kernels[name], labels)
        fields[name] = one.fields()
    own = next(iter(kernels.values()))
    return Material(folder, subject, labels, named, _one_of_each(labels), own, layers, fields)


def _write(material: Material, pictures: int, console: Console) -> Path:
    makers: list[Callable[[Material], Section | None]] = [
        _kernels, _routing, _inhibition, _shapes, _redundancy, _fields, _answers, _numbers,
    ]  # fmt: skip
    made = [make(material) for make in track(makers, console, "drawing", len(makers))]
    source = {
        0: "Their classes are what the model says of them.",
        len(material.labels): "Their classes are the names of their folders.",
    }.get(
        material.named, f"{material.named} have their folder's class, the others what the model says of them."
    )
    model = type(material.subject.model).__name__
    introduction = (
        f"A trained {model} looks at {pictures} pictures. {source} ATConv makes a small kernel for every "
        "picture and channel: a weighted sum of a position and its neighbours. Below is shown how these "
        "kernels follow the content (routing), how their weights compete (inhibition), and what comes of it."
    )
    page = material.folder / "index.html"
    sections = [section for section in made if section is not None]
    write_page(f"What the operator does: {material.subject.path}", introduction, sections, page)
    return page


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
    if len(material.labels) == 1:
        finding = ""
    elif routed[layer] > _ROUNDING:
        finding = f"Kernels change most in layer {label}."
    else:
        finding = "These kernels are the same for every picture: the model has no routing."
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
    share = statistics.mean(one.share_between for one in routed)
    classes = len(set(material.labels.tolist()))
    told = f" {share:.0%} of that is between classes." if classes > 1 and total else ""
    return Section(
        "Routing: do kernels follow the content?",
        "The variance of kernels from picture to picture, as a share of their mean square weight: 0 for a "
        "static convolution. Between classes: the classes' mean kernels differ. Within a class: pictures of "
        "one class get different kernels.",
        f"Averaged over layers, kernels vary by {total:.1%} of their mean square weight.{told}",
        [path],
    )


def _inhibition(material: Material) -> Section | None:
    rows = read_rows(material.subject.path / "inhibition.csv")
    if not rows or "channels" not in rows[0]:
        return None
    path = material.folder / "inhibition.png"
    figures.draw_inhibition(rows, path)
    last = [float(row["mean"]) for row in rows if row["epoch"] == rows[-1]["epoch"]]
    return Section(
        "Inhibition: how strongly do weights compete?",
        "Before a kernel is used, λ times its mean is taken off every weight, so one weight can only win at "
        "the others' expense. λ is learned for each channel and starts at 0.5 (dotted).",
        f"After training, the layers' mean λ lies between {min(last):.2f} and {max(last):.2f}.",
        [path],
    )


def _shapes(material: Material) -> Section | None:
    path = material.folder / "shapes.png"
    after = [one.kernel for one in material.own if one.kernel is not None]
    if not after:  # kernels of 1 × 1 have no shape
        return None
    figures.draw_shapes(material.layers, path)
    before = [one.uninhibited for one in material.own if one.uninhibited is not None]
    finding = f"{statistics.mean(one.negative_share for one in after):.0%} of the weights are negative"
    if before:
        finding += f", {statistics.mean(one.negative_share for one in before):.0%} before inhibition"
    return Section(
        "Inhibition: what it does to the kernels",
        "Signs and sharpness by layer. Kernels with weights of both signs compare a position with its "
        "neighbours; a flat kernel only blurs. Dashed: the same kernels before inhibition. (Kurtosis is "
        "taken around a kernel's mean, which is all that inhibition moves, so it does not change.)",
        f"{finding}.",
        [path],
    )


def _redundancy(material: Material) -> Section:
    path = material.folder / "redundancy.png"
    figures.draw_redundancy(material.layers, path)
    parts = [
        f"{name}: likeness {statistics.mean(x.redundancy.cosine for x in rows):.3f}, "
        f"effective rank {statistics.mean(x.redundancy.effective_rank for x in rows):.0%} of the channels"
        for name, rows in material.layers.items()
    ]
    return Section(
        "Redundancy: do channels say different things?",
        "Taken over pictures and positions, behind each token mixer. Likeness is 1 where all channels are "
        "multiples of one and 0 where all are orthogonal; the effective rank says how many channels' worth "
        "of different content there is.",
        f"Means over layers. {'; '.join(parts)}.",
        [path],
    )


def _fields(material: Material) -> Section | None:
    fields = {name: found for name, found in material.fields.items() if found}
    if not fields:
        return None
    path = material.folder / "receptive_field.png"
    figures.draw_fields(fields, path)
    parts = [f"{name} {found[-1].radii['gradient']:.1f} pixels" for name, found in fields.items()]
    return Section(
        "Effective routing: where does the output look?",
        "The brighter a pixel, the more the middle of a stage's map changes with it, through all layers "
        "before. For models with attention, the rollout of each stage's attention weights is shown below.",
        f"Mean distance in the last stage: {', '.join(parts)}.",
        [path],
    )


def _answers(material: Material) -> Section | None:
    answers, layer = material.subject.answers(material.shown)
    if not answers:
        return None
    path = material.folder / "answers.png"
    titles: list[str | None] = list(material.titles())
    figures.draw_answers(material.subject.pictures(material.shown), answers, titles, layer, path)
    return Section(
        "One answer at a time",
        "Each picture with the class it was taken for. Below, bright places speak for that class.",
        pictures=[path],
    )


def _numbers(material: Material) -> Section:
    rows = []
    for model, layers in material.layers.items():
        for one in layers:
            rows.append([model, f"{figures.layer_label(one.name)} {one.kind}", *map(_cell, _figures(one))])
    heads = [
        "model", "layer", "routing variance", "between classes", "λ", "negative", "entropy", "kurtosis",
        "likeness", "effective rank",
    ]  # fmt: skip
    text = "The figures behind the pictures; analysis.json holds them too. Shares are of 1."
    return Section("The numbers", text, table=Table(heads, rows))


def _figures(one: Layer) -> list[float | None]:
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


def _summary(material: Material) -> dict[str, Any]:
    return {
        "run": str(material.subject.path),
        "pictures": len(material.labels),
        "classes_from_folders": material.named,
        "layers": {name: [asdict(one) for one in rows] for name, rows in material.layers.items()},
        "receptive_fields": {
            name: [{"stage": one.stage, "map": one.map_size, "radius_in_pixels": one.radii} for one in found]
            for name, found in material.fields.items()
        },
    }


def _check_free(folder: Path) -> None:
    """The folder is new, empty, or holds an earlier analysis."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "analysis.json").is_file():
        raise ValueError(f"{folder} holds something that is no analysis: name another folder with --out")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder with --out")


def _readable(paths: Sequence[Path], console: Console) -> list[Path]:
    found = []
    for path in paths:
        try:
            read_image(path)
        except ValueError as error:
            console.print(f"left out: {error}", soft_wrap=True)
        else:
            found.append(path)
    if not found:
        raise ValueError(f"none of the {len(paths)} pictures could be read")
    return found


def _spread(paths: list[Path], most: int) -> list[Path]:
    count = len(paths)
    return paths if count <= most else [paths[i * count // most] for i in range(most)]


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Runs by a short name: the last part of the path where that tells them apart."""
    if len(set(paths)) < len(paths):
        raise ValueError(f"a run is named twice: {', '.join(paths)}")
    short = [Path(path).name for path in paths]
    return dict(zip(short if len(set(short)) == len(short) else paths, paths, strict=True))


def _one_of_each(labels: Tensor) -> list[int]:
    """Positions of pictures to draw: the first of each class, then the second, and so on."""
    seen: dict[int, int] = {}
    turns = []
    for position, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        turns.append((seen[label], position))
    return sorted(position for _, position in sorted(turns)[:_SHOWN])
