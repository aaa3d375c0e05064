"""`atconv analyze`: what the operator of a trained model does with images, in numbers and on a page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from atconv.analysis import (
    collect_kernels,
    explain,
    explanation_layer,
    measure_layers,
    mixer_layers,
    stage_fields,
)
from atconv.analysis.features import evenly_spaced
from atconv.data.images import read_image
from atconv.data.listing import find_images
from atconv.engine.options import PositiveInt, check_value
from atconv.engine.predictor import ImageLike
from atconv.engine.progress import progress
from atconv.engine.run import unique_names
from atconv.io import check_target, read_rows, write_json
from atconv.modules import ATConv2d, ATConvTokens, inhibition_strength
from atconv.tasks import load
from atconv.tasks.classification.analyze_page import ReportData, write_report
from atconv.tasks.classification.classifier import ClassifierPredictor

__all__ = ["analyze"]

logger = logging.getLogger(__name__)

_SHOWN_IMAGES = 10


def analyze(
    run: str | Path,
    images: Sequence[str],
    compare: Sequence[str] = (),
    out: str | None = None,
    max_images: PositiveInt = 64,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Path:
    """Show what the operator does: routing, inhibition, redundancy, receptive fields, explanations.

    Args:
        run: folder of a classification run whose model contains ATConv.
        images: image files, folders or globs. An image's class is its folder's name where the run knows
            it, else the model's prediction.
        compare: other runs, such as one with attention or without inhibition, shown next to it.
        out: folder for the page, its plots and analysis.json (default: RUN/analysis).
        max_images: number of images that are used, evenly spaced among those given.
        device: auto, cpu, cuda or mps.

    Returns:
        index.html.

    Raises:
        FileNotFoundError: no such run, or no images.
        ValueError: the run has no ATConv, a compared run has no known token mixer, no image can be read,
            or the folder holds something else.
    """
    check_value("max_images", max_images, PositiveInt)
    folder = Path(out) if out is not None else Path(run) / "analysis"
    check_target(folder, "analysis.json", "analysis")
    paths = _readable(evenly_spaced(find_images(images), max_images))
    runs = unique_names([run, *compare])
    probes = {name: Probe.open(path, paths, device) for name, path in runs.items()}
    model = next(iter(probes.values())).predictor.model
    kinds = sorted({type(model.get_submodule(name)).__name__ for name in mixer_layers(model)})
    if not {ATConv2d.__name__, ATConvTokens.__name__} & set(kinds):
        raise ValueError(
            f"{run} does not contain ATConv, its token mixers are {', '.join(kinds)}: give such a run after "
            "--compare"
        )
    data = _measure(probes, paths)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "analysis.json", _summary(data, paths))
    page = write_report(data, folder)
    logger.info("written to %s", page)
    return page


@dataclass(frozen=True)
class Probe:
    """The model of a run and the images that it is shown."""

    predictor: ClassifierPredictor[Any]
    images: Tensor
    """B C H W, on the model's device"""
    predicted: Tensor
    """B class indices"""

    @classmethod
    def open(cls, run: str | Path, paths: Sequence[Path], device: str = "auto") -> Probe:
        """Open a run and show its model some image files.

        Raises:
            FileNotFoundError, ValueError: no such run, or it has no classifier or no known token mixer.
        """
        predictor = load(run)
        if not isinstance(predictor, ClassifierPredictor):
            raise ValueError(f"{run} is a {predictor.task} run: only classification runs are analyzed")
        if predictor.multi_label:
            raise ValueError(f"{run} gives several labels an image: only runs of one class each are analyzed")
        model = predictor.to(device).model
        if not mixer_layers(model):
            raise ValueError(
                f"{run} has no token mixer to analyze (it holds a {type(model).__name__}): give the run of "
                "an AttNet, or of another model with ATConv or timm's attention"
            )
        return cls.show(predictor, paths)

    @classmethod
    def show(cls, predictor: ClassifierPredictor[Any], images: Sequence[ImageLike]) -> Probe:
        """Show images to an open model."""
        inputs = torch.stack([predictor.transform(predictor.open_image(image)) for image in images])
        inputs = inputs.to(predictor.device)
        with torch.inference_mode():
            return cls(predictor, inputs, predictor.model(inputs).argmax(1).cpu())

    def labels(self, folders: Sequence[str]) -> tuple[Tensor, int]:
        """The class of each image: its folder's name where that is a class, else the prediction; and the
        number of images whose folder is a class."""
        index = {name: i for i, name in enumerate(self.predictor.classes)}
        labels = torch.tensor([index.get(folder, -1) for folder in folders])
        return torch.where(labels >= 0, labels, self.predicted), int((labels >= 0).sum())

    def pixels(self, indices: Sequence[int]) -> list[Any]:
        """Some of the images as the model sees them, cropped and scaled: H W (gray) or H W 3 of uint8."""
        normalization = self.predictor.transform.data
        mean, std = (torch.tensor(normalization[name])[:, None, None] for name in ("mean", "std"))
        scaled = self.images[list(indices)].cpu() * std + mean
        values = scaled.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)
        return [image.squeeze(-1).numpy() for image in values]


def _measure(probes: dict[str, Probe], paths: Sequence[Path]) -> ReportData:
    probe = next(iter(probes.values()))
    run, model, classes = probe.predictor.run, probe.predictor.model, probe.predictor.classes
    labels, from_folders = probe.labels([path.parent.name for path in paths])
    layers, fields = {}, {}
    for name, other in progress(probes.items(), "measuring"):
        layers[name] = measure_layers(other.predictor.model, other.images, labels)
        fields[name] = stage_fields(other.predictor.model, other.images)
    shown = _first_of_each_class(labels)
    images, layer = probe.images[shown], explanation_layer(model, probe.images)
    return ReportData(
        run.path,
        model,
        from_folders,
        len(paths),
        shown,
        probe.pixels(shown),
        [classes[int(labels[i])] for i in shown],
        collect_kernels(model, images),
        layers,
        fields,
        _inhibition_history(run.path),
        [] if layer is None else explain(model, images, classes, layer),
        layer or "",
    )


def _inhibition_history(run: Path) -> dict[str, dict[int, list[float]]]:
    """λ of each channel by layer and epoch, from the run's inhibition.csv; empty where there is none."""
    history: dict[str, dict[int, list[float]]] = {}

    def strengths(channels: str) -> list[float]:
        return [int(value) / 1000 for value in channels.split()]

    for row in read_rows(run / "inhibition.csv", {"epoch": int, "layer": str, "channels": strengths}):
        history.setdefault(row["layer"], {})[row["epoch"]] = row["channels"]
    return history


def _summary(data: ReportData, paths: Sequence[Path]) -> dict[str, Any]:
    """The content of analysis.json."""
    return {
        "run": str(data.run),
        "images": data.count,
        "classes_from_folders": data.from_folders,
        "layers": {model: [asdict(layer) for layer in rows] for model, rows in data.layers.items()},
        "inhibition_by_channel": {
            name: strength.tolist() for name, strength in inhibition_strength(data.model).items()
        },
        "receptive_fields": {
            model: [
                {"stage": field.stage, "map": field.map_size, "radius_in_pixels": field.radii}
                for field in stages
            ]
            for model, stages in data.fields.items()
        },
        "explanations": [
            {
                "image": str(paths[position]),
                "class": title,
                "predicted": explanation.predicted,
                "probability": explanation.probability,
            }
            for position, title, explanation in zip(data.shown, data.titles, data.explanations, strict=False)
        ],
    }


def _readable(paths: Sequence[Path]) -> list[Path]:
    readable, errors = [], []
    for path in paths:
        try:
            read_image(path)
        except ValueError as error:
            errors.append(str(error))
        else:
            readable.append(path)
    if not readable:
        raise ValueError(f"none of the {len(paths)} images could be read: {errors[0]}")
    for reason in errors:
        logger.warning("skipped: %s", reason)
    return readable


def _first_of_each_class(labels: Tensor) -> list[int]:
    """Positions of the images to show: the first of each class, then the second, and so on."""
    counts: dict[int, int] = {}
    ranked = []
    for position, label in enumerate(labels.tolist()):
        counts[label] = counts.get(label, 0) + 1
        ranked.append((counts[label], position))
    return sorted(position for _, position in sorted(ranked)[:_SHOWN_IMAGES])
