"""`atconv analyze`: what the operator of a trained model does with pictures, in numbers and on a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import Tensor

from atconv.analysis.features import spread
from atconv.analysis.page import Section, write_page
from atconv.analysis.sections import SECTIONS, Material
from atconv.analysis.subject import Subject
from atconv.data.images import find_images, read_image
from atconv.engine import run as runs
from atconv.engine.progress import plain_console, track
from atconv.io import write_atomically
from atconv.modules import inhibition_strength

__all__ = ["analyze"]

_SHOWN = 6  # pictures drawn


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
    console, where = console or plain_console(), runs.resolve_device(device)
    folder = Path(out) if out is not None else Path(run) / "analysis"
    _check_free(folder)
    pictures = _readable(spread(find_images(images), most), console)
    subjects = {name: Subject(path, pictures, where) for name, path in _names([str(run), *beside]).items()}
    subject = next(iter(subjects.values()))
    if not subject.has_operator:
        raise ValueError(
            f"{run} does not contain ATConv, its token mixers are {', '.join(subject.kinds)}: give such a "
            "run after --beside"
        )
    material = _measure(folder, subjects, [path.parent.name for path in pictures], console)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_summary(material, pictures), indent=1, ensure_ascii=False)
    write_atomically(folder / "analysis.json", lambda path: path.write_text(text, encoding="utf-8"))
    page = _write(material, console)
    console.print(f"written to {page}", soft_wrap=True)
    return page


def _measure(
    folder: Path, subjects: Mapping[str, Subject], folders: Sequence[str], console: Console
) -> Material:
    subject = next(iter(subjects.values()))
    labels, named = subject.labels(folders)
    shown = _one_of_each(labels)
    kernels = {name: one.kernels() for name, one in subjects.items()}
    layers, fields = {}, {}
    for name, one in track(subjects.items(), console, "measuring", len(subjects)):
        layers[name] = one.measure(kernels[name], labels)
        fields[name] = one.fields()
    own = next(iter(kernels.values()))
    return Material(folder, subject, labels, named, shown, own, layers, fields, *subject.answers(shown))


def _write(material: Material, console: Console) -> Path:
    count, named = len(material.labels), material.named
    made = [make(material) for make in track(SECTIONS, console, "drawing", len(SECTIONS))]
    sections = [section for section in made if section is not None]
    if named == count:
        source = "Classes are the names of the pictures' folders."
    elif named == 0:
        source = "The pictures' classes are what the model says of them."
    else:
        source = f"{named} have their folder's class, the others what the model says of them."
    model, some = type(material.subject.model).__name__, "one picture" if count == 1 else f"{count} pictures"
    introduction = (
        f"A trained {model} looks at {some}. {source} ATConv makes a small kernel for every picture and "
        "channel: a weighted sum of a position and its neighbors. Below is shown how these kernels follow "
        "the content (routing), how their weights compete (inhibition), and what comes of it."
    )
    page = material.folder / "index.html"
    write_page(f"What the operator does: {material.subject.path}", introduction, sections, page)
    _remove_others(material.folder, sections)
    return page


def _remove_others(folder: Path, sections: Sequence[Section]) -> None:
    """Pictures of an earlier analysis that this one has none of."""
    kept = {path.name for section in sections for path in section.pictures}
    for name in ("routing.png", "inhibition.png", "shapes.png", "receptive_field.png", "answers.png"):
        if name not in kept:
            (folder / name).unlink(missing_ok=True)


def _summary(material: Material, pictures: Sequence[Path]) -> dict[str, Any]:
    asked = zip(material.shown, material.titles(), material.answers, strict=False)
    strengths = inhibition_strength(material.subject.model)
    return {
        "run": str(material.subject.path),
        "pictures": len(material.labels),
        "classes_from_folders": material.named,
        "layers": {name: [asdict(one) for one in rows] for name, rows in material.layers.items()},
        "inhibition_by_channel": {name: one.tolist() for name, one in strengths.items()},
        "receptive_fields": {
            name: [
                {"stage": one.stage, "map": one.map_size, "spread_in_pixels": one.spreads} for one in found
            ]
            for name, found in material.fields.items()
        },
        "answers": [
            {
                "picture": str(pictures[position]),
                "class": title,
                "said": answer.name,
                "probability": answer.probability,
            }
            for position, title, answer in asked
        ],
    }


def _check_free(folder: Path) -> None:
    """The folder is new, empty, or holds an earlier analysis."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "analysis.json").is_file():
        raise ValueError(f"{folder} holds something that is no analysis: name another folder with --out")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder with --out")


def _readable(paths: Sequence[Path], console: Console) -> list[Path]:
    found, reasons = [], []
    for path in paths:
        try:
            read_image(path)
        except ValueError as error:
            reasons.append(str(error))
        else:
            found.append(path)
    if not found:
        raise ValueError(f"none of the {len(paths)} pictures could be read: {reasons[0]}")
    for reason in reasons:
        console.print(f"left out: {reason}", soft_wrap=True)
    return found


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Runs by a short name: the last part of the path where that tells them apart."""
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ValueError(f"a run is named twice: {', '.join(paths)}")
    short = [Path(path).resolve().name for path in paths]
    return dict(zip(short if len(set(short)) == len(short) else paths, paths, strict=True))


def _one_of_each(labels: Tensor) -> list[int]:
    """Positions of pictures to draw: the first of each class, then the second, and so on."""
    seen: dict[int, int] = {}
    turns = []
    for position, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        turns.append((seen[label], position))
    return sorted(position for _, position in sorted(turns)[:_SHOWN])
