"""A trained detector: what it detects in images, and how good it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from atconv.data.boxes.split import BadAnnotations, BoxSplit, decode_mask, encode_mask
from atconv.data.formats import open_boxes
from atconv.data.loaders import EpochLoader, Items
from atconv.data.orientation import Exif
from atconv.engine.options import PositiveInt, Share, Workers
from atconv.models.detectors import detector
from atconv.tasks.common.annotated_predictor import AnnotatedPredictor, DrawnResult
from atconv.tasks.detection.config import DetectionConfig
from atconv.tasks.detection.data import DetectionTransform, EvalExamples, Target, collate
from atconv.tasks.detection.metrics import DetectionMetrics, compute_metrics
from atconv.tasks.detection.plots import draw_detections, plot_split

__all__ = ["DetectionPredictor", "Detections"]


@dataclass(frozen=True, kw_only=True)
class Detections(DrawnResult):
    """The objects in one image, most certain first."""

    classes: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    """left, top, right, bottom in pixels"""
    masks: list[dict[str, Any]] | None = None
    """COCO's run lengths, from a detector that gives masks"""

    def columns(self) -> Sequence[str]:
        return ["image", "detected", "left top right bottom"]

    def rows(self) -> list[Sequence[str]]:
        objects = zip(self.classes, self.scores, self.boxes, strict=True)
        rows: list[Sequence[str]] = [
            [self.image, f"{name} {score:.2f}", " ".join(f"{x:.0f}" for x in box)]
            for name, score, box in objects
        ]
        return rows or [[self.image, "nothing", ""]]

    def csv_rows(self) -> list[Sequence[Any]]:
        objects = zip(self.classes, self.scores, self.boxes, strict=True)
        return [[self.image, name, f"{score:.6f}", *box] for name, score, box in objects]


class DetectionPredictor(AnnotatedPredictor[Detections, DetectionMetrics, BoxSplit]):
    """A trained detector. `predictor(images, threshold=0.5)`; the model takes a list of inputs."""

    task = "detection"
    annotation = "boxes"
    command, part = "atconv detect train", "detector"
    csv_columns = ("image", "class", "score", "left", "top", "right", "bottom")
    config_class, result_class, metrics_class = DetectionConfig, Detections, DetectionMetrics

    @property
    def masks(self) -> bool:
        """Whether the detector gives masks."""
        return isinstance(self.model, MaskRCNN)

    @classmethod
    def build(cls, content: dict[str, Any]) -> tuple[nn.Module, DetectionTransform]:
        arguments = content["detector"]
        return cls.build_model(arguments), DetectionTransform(arguments["in_chans"])

    @staticmethod
    def build_model(arguments: dict[str, Any], state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
        try:
            return detector(**arguments, state_dict=state_dict).to(memory_format=torch.channels_last)
        except TypeError as error:
            raise ValueError(f"detector_args do not fit {arguments['architecture']}: {error}") from error

    @torch.inference_mode()
    def detect(self, image: Tensor) -> Target:
        """The objects in an image, C H W in 0…1: boxes (N 4), labels, scores, and masks (N H W of 0…1)."""
        output = {name: value.cpu() for name, value in self.model([image.to(self.device)])[0].items()}
        return output | ({"masks": output["masks"][:, 0]} if self.masks else {})

    def infer(  # type: ignore[override]
        self, images: Sequence[Image.Image], names: Sequence[str], threshold: Share = 0.5
    ) -> list[Detections]:
        """The objects in each image.

        Args:
            threshold: lowest score.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in 0 … 1, got {threshold}")
        # One after the other: padding to the size of a neighbor changes what is detected.
        return [
            self._result(self.detect(self.transform(image)), name, threshold)
            for image, name in zip(images, names, strict=True)
        ]

    def _result(self, output: Target, name: str, threshold: float) -> Detections:
        selected = output["scores"] >= threshold
        masks = None
        if self.masks:
            masks = [encode_mask(mask.numpy() > 0.5) for mask in output["masks"][selected]]
        return Detections(
            image=name,
            classes=[self.classes[label - 1] for label in output["labels"][selected].tolist()],
            scores=output["scores"][selected].tolist(),
            boxes=output["boxes"][selected].tolist(),
            masks=masks,
        )

    def evaluate(  # type: ignore[override]
        self,
        data: str | None = None,
        split: Literal["auto", "train", "val", "test", "all"] = "auto",
        batch_size: PositiveInt = 8,
        bad_annotations: BadAnnotations | None = None,
        exif: Exif | None = None,
        images: str | None = None,
        workers: Workers = 2,
    ) -> DetectionMetrics:
        """COCO's metrics on a split of DATA, the run's own by default.

        Args:
            data: DATA as in training. Of the run's own, or a copy or part of it, its saved splits are used.
            split: train, val, test or all; "auto" takes test, else val, else all. Metrics say how many of the
                images were trained on.
            batch_size: images in one forward pass.
            bad_annotations: reject annotations that are wrong, or skip them: they are named and left out;
                default: as the run was configured.
            exif: what annotations of images with an EXIF orientation belong to, the image turned upright or
                the pixels as stored; default: as the run was configured.
            images: folder of the images where they lie outside DATA; default: the run's, for its own DATA.
            workers: data-loading processes; 0 loads in this one.

        Raises:
            FileNotFoundError, ValueError: no such data or split, classes that the run does not know, or
                `batch_size` < 1.
        """
        return self.evaluate_split(
            data, split, images, batch_size, workers, bad_annotations=bad_annotations, exif=exif
        )

    def export(self, **options: Any) -> Any:
        from atconv.tasks.common.export import export
        from atconv.tasks.detection.export import DetectionExporter

        return export(DetectionExporter(self), **options)

    def configured(self) -> dict[str, Any]:
        return super().configured() | {"bad_annotations": getattr(self.config, "bad_annotations", "reject")}

    def open_split(self, data: str, split: str, **settings: Any) -> dict[str, BoxSplit]:
        return open_boxes(
            data, self.masks, classes=self.classes, split=split, skip_unreadable=True, **settings
        )

    def measure(
        self, split: BoxSplit, batches: Iterable[list[int]], workers: int, **settings: Any
    ) -> dict[str, Any]:
        examples = Items(EvalExamples(split, self.transform, self.masks))
        loaded = EpochLoader(examples, workers, self.device, collate).batches(batches)
        coco, per_class = compute_metrics(self.model, loaded, self.classes, self.masks)
        return {"coco": coco, "per_class": per_class}

    def plot_split(self, split: BoxSplit, path: Path) -> None:
        plot_split(split, self.detect, self.transform, self.masks, path)

    def save_prediction(self, result: Detections, image: Image.Image, file: Path) -> Detections:
        labels = [1 + self.classes.index(name) for name in result.classes]
        objects: Target = {
            "boxes": torch.tensor(result.boxes).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(result.scores),
        }
        if result.masks:
            decoded = [torch.from_numpy(decode_mask(mask, *mask["size"])) for mask in result.masks]
            objects["masks"] = torch.stack(decoded)
        drawn = draw_detections(self.transform(image), objects, self.classes, threshold=0.0)
        Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(file)
        return replace(result, plot=str(file))
