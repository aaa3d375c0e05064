"""A trained segmenter: the classes of an image's pixels, and how good it is."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from atconv.data.config import MaskOptions
from atconv.data.formats import open_masks
from atconv.data.loaders import EpochLoader, Items
from atconv.data.masks.split import MaskSplit
from atconv.data.orientation import Exif
from atconv.engine.options import PositiveInt, Workers
from atconv.models.segmenters import segmenter
from atconv.tasks.common.annotated_predictor import AnnotatedPredictor, DrawnResult
from atconv.tasks.common.drawing import class_colors
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.segmentation.data import EvalExamples, SegmentationTransform, predictions
from atconv.tasks.segmentation.metrics import (
    SegmentationMetrics,
    count_pixels,
    intervals,
    mean_iou,
    per_class,
    pixel_accuracy,
)
from atconv.tasks.segmentation.plots import plot_prediction, plot_split

__all__ = ["Segmentation", "SegmentationPredictor", "classify_pixels"]


@dataclass(frozen=True, kw_only=True)
class Segmentation(DrawnResult):
    """The classes of one image."""

    shares: dict[str, float] = field(default_factory=dict)
    """share of the image by class, largest first; classes that do not occur are left out"""
    png: bytes = field(default=b"", repr=False)
    """class indices as a PNG file, as large as the image; see `mask`"""
    mask_file: str | None = None
    """the file of class indices, once it is written"""

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Class indices, H W."""
        return np.array(Image.open(io.BytesIO(self.png)))

    def columns(self) -> Sequence[str]:
        return ["image", "share of the image"]

    def rows(self) -> list[Sequence[str]]:
        return [[self.image, ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.shares.items())]]

    def csv_rows(self) -> list[Sequence[Any]]:
        return [[self.image, name, f"{share:.6f}"] for name, share in self.shares.items()]

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        del values["png"]
        return values


class SegmentationPredictor(AnnotatedPredictor[Segmentation, SegmentationMetrics, MaskSplit]):
    """A trained segmenter. `predictor(images)`; the model takes B C H W of `transform`'s results and gives
    logits, which `transform.undo` brings to the size of the image."""

    task = "segmentation"
    annotation = "masks"
    command, part = "atconv segment train", "segmenter"
    csv_columns = ("image", "class", "share")
    config_class, result_class, metrics_class = SegmentationConfig, Segmentation, SegmentationMetrics

    @property
    def flip_tta(self) -> bool:
        """Whether the run was configured to average predictions for an image and its mirror image."""
        return self.model_config.get("flip_tta", False)

    @classmethod
    def build(cls, content: dict[str, Any]) -> tuple[nn.Module, SegmentationTransform]:
        arguments = content["segmenter"]
        transform = SegmentationTransform(arguments["in_chans"], **content["transform"])
        return cls.build_model(arguments), transform

    @staticmethod
    def build_model(arguments: dict[str, Any], state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
        return segmenter(**arguments, state_dict=state_dict).to(memory_format=torch.channels_last)

    def classify(self, inputs: Tensor, size: tuple[int, int], flip_tta: bool | None = None) -> Tensor:
        """Class indices of images of one size (height, width): B C H W of inputs → B height width."""
        flip_tta = self.flip_tta if flip_tta is None else flip_tta
        return classify_pixels(self.model, self.transform, inputs, size, flip_tta)

    def infer(
        self,
        images: Sequence[Image.Image],
        names: Sequence[str],
        flip_tta: bool | None = None,
        **options: Any,
    ) -> list[Segmentation]:
        """The class of every pixel of each image.

        Args:
            flip_tta: average predictions for every image and its mirror image; default: as the run was
                configured.
        """
        return [
            self._result(
                self.classify(self.transform(image)[None], (image.height, image.width), flip_tta)[0], name
            )
            for image, name in zip(images, names, strict=True)
        ]

    def _result(self, mask: Tensor, name: str) -> Segmentation:
        indices, counts = mask.unique(return_counts=True)
        order = counts.argsort(descending=True)
        shares = {self.classes[int(indices[i])]: int(counts[i]) / mask.numel() for i in order}
        file = io.BytesIO()
        image = Image.fromarray(mask.byte().numpy())
        image.putpalette(sum(class_colors(len(self.classes)), ()))  # viewers show colors; values stay indices
        image.save(file, "PNG")
        return Segmentation(image=name, shares=shares, png=file.getvalue())

    def evaluate(  # type: ignore[override]
        self,
        data: str | None = None,
        split: Literal["auto", "train", "val", "test", "all"] = "auto",
        flip_tta: bool | None = None,
        batch_size: PositiveInt = 8,
        exif: Exif | None = None,
        images: str | None = None,
        workers: Workers = 2,
    ) -> SegmentationMetrics:
        """Metrics on a split of DATA, the run's own by default. Every image is evaluated at its own size.

        Args:
            data: DATA as in training. Of the run's own, or a copy or part of it, its saved splits are used.
            split: train, val, test or all; "auto" takes test, else val, else all. Metrics say how many of the
                images were trained on.
            flip_tta: average predictions for every image and its mirror image; default: as the run was
                configured.
            batch_size: images in one forward pass.
            exif: what masks of images with an EXIF orientation belong to, the image turned upright or the
                pixels as stored; default: as the run was configured.
            images: folder of the images where they lie outside DATA; default: the run's, for its own DATA.
            workers: data-loading processes; 0 loads in this one.

        Raises:
            FileNotFoundError, ValueError: no such data or split, classes that the run does not know, or
                `batch_size` < 1.
        """
        return self.evaluate_split(data, split, images, batch_size, workers, flip_tta=flip_tta, exif=exif)

    def export(self, **options: Any) -> Any:
        from atconv.tasks.common.export import export
        from atconv.tasks.segmentation.export import SegmentationExporter

        return export(SegmentationExporter(self), **options)

    def configured(self) -> dict[str, Any]:
        return super().configured() | {"flip_tta": self.flip_tta}

    def data_options(self) -> dict[str, Any]:
        return {"options": self.config or MaskOptions()}

    def open_split(self, data: str, split: str, **settings: Any) -> dict[str, MaskSplit]:
        return open_masks(
            data,
            classes=self.classes,
            split=split,
            **self.data_options(),
            exif=settings["exif"],
            images=settings["images"],
            skip_unreadable=True,
        )

    def measure(
        self, split: MaskSplit, batches: Iterable[list[int]], workers: int, **settings: Any
    ) -> dict[str, Any]:
        classify = partial(self.classify, flip_tta=settings["flip_tta"])
        examples = Items(EvalExamples(split, self.transform))
        loaded = EpochLoader[tuple[Tensor, Tensor]](examples, workers, self.device).batches(batches)
        counts, images = count_pixels(predictions(loaded, classify), len(self.classes))
        return {
            **intervals(images),
            "miou": mean_iou(counts),
            "pixel_accuracy": pixel_accuracy(counts),
            "per_class": per_class(counts, self.classes),
        }

    def plot_split(self, split: MaskSplit, path: Path) -> None:
        plot_split(split, self.classify, self.transform, path)

    def save_prediction(self, result: Segmentation, image: Image.Image, file: Path) -> Segmentation:
        """Draw it in FILE, and write its class indices to masks/FILE."""
        mask_file = file.parent / "masks" / file.name
        mask_file.parent.mkdir(exist_ok=True)
        mask_file.write_bytes(result.png)
        plot_prediction(image, torch.from_numpy(result.mask), self.classes, file)
        return replace(result, plot=str(file), mask_file=str(mask_file))


@torch.inference_mode()
def classify_pixels(
    model: nn.Module,
    transform: SegmentationTransform,
    inputs: Tensor,
    size: tuple[int, int],
    flip_tta: bool = False,
) -> Tensor:
    """Class indices of images of one size (height, width): B C H W of inputs → B height width, on the CPU.

    Args:
        flip_tta: average the predictions for each image and its mirror image.
    """
    inputs = inputs.to(next(model.parameters()).device, non_blocking=True)
    scores = model(inputs).float()
    if flip_tta:
        mirrored = model(inputs.flip(3)).float().flip(3)
        scores = scores.softmax(1) + mirrored.softmax(1)
    return transform.undo(scores, size).argmax(1).cpu()
