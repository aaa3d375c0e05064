"""A detector as a file: one image of any size → boxes, scores, classes, masks."""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import box_iou

from atconv.data.boxes import decode_mask
from atconv.deploy import Call
from atconv.deploy.traced import export_onnx_traced
from atconv.tasks.common.annotated_exporter import AnnotatedExporter
from atconv.tasks.common.exporter import Agreement

__all__ = ["DetectionExporter"]

logger = logging.getLogger(__name__)

_AXES = {
    "images": {2: "height", 3: "width"},
    "boxes": {0: "objects"},
    "scores": {0: "objects"},
    "labels": {0: "objects"},
    "masks": {0: "objects", 1: "height", 2: "width"},
}
_MAX_LOST = 0.02  # share of objects that rounding may move over a threshold
_LIMITS = (0.1, 1e-3, 0.05)  # of boxes in pixels, scores and masks: see _Difference
_NOISE = 1e-6  # of pixels in 0…1, as large as rounding


class DetectionExporter(AnnotatedExporter):
    """What the file gives has been through non-maximum suppression, and is in pixels of the image."""

    formats = ("onnx", "web")
    why_not = (
        "which boxes it keeps depends on their values, which other formats do not take, and OpenVINO gives a "
        "box where there is none"
    )
    any_batch = False

    @functools.cached_property
    def graph(self) -> nn.Module:
        return _OneImage(self.model).eval()

    @property
    def output_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("boxes", "scores", "labels", "masks")[: 4 if isinstance(self.model, MaskRCNN) else 3]

    @property
    def shape(self) -> tuple[int, int, int]:
        resize: Any = self.model.transform
        size = min(resize.min_size[-1], resize.max_size)
        return self.predictor.model_config["detector"]["in_chans"], size, size * 5 // 4

    @property
    def traced(self) -> tuple[int, int]:  # type: ignore[override]
        return self.shape[1:]

    def describe(self) -> dict[str, Any]:
        about = {
            "boxes": {"axes": "objects 4", "values": "left, top, right, bottom in pixels of the image"},
            "scores": {"axes": "objects", "values": "0…1, highest first"},
            "labels": {"axes": "objects", "values": "index into classes"},
            "masks": {"axes": "objects height width", "values": "0…1, more than 0.5 is the object"},
        }
        return {"inputs": self.image_input(), "outputs": {name: about[name] for name in self.output_names}}

    def write(self, format: str, path: Any, inputs: tuple[Tensor, ...], sizes: str, **options: Any) -> None:
        names = ("images", *self.output_names)
        axes = {name: _AXES[name] for name in names} if sizes == "size" else {}
        export_onnx_traced(
            self.graph, path, inputs, axes, options["opset"], self.input_names, self.output_names
        )

    def error(self, actual: Any, expected: Any) -> float:
        difference = _compare(actual, expected)
        if difference.lost > _MAX_LOST * len(expected[0]):
            return float("inf")
        extent = max(1.0, float(expected[0].abs().max())) if len(expected[0]) else 1.0
        return max(difference.box / extent, difference.score)

    def agreement(self, call: Call, images: list[Image.Image]) -> Agreement:
        differences, objects = [], 0
        for image in images:
            [result] = self.predictor.infer([image], [""], threshold=0.0)
            expected = [
                torch.tensor(result.boxes).reshape(-1, 4),
                torch.tensor(result.scores),
                torch.tensor([self.predictor.classes.index(name) for name in result.classes]),
            ]
            if result.masks is not None:
                decoded = [torch.from_numpy(decode_mask(mask, *mask["size"])) for mask in result.masks]
                expected.append(torch.stack(decoded) if decoded else torch.zeros(0, *image.size[::-1]))
            objects += len(expected[0])
            differences.append(_compare(call(self.predictor.transform(image)[None]), tuple(expected)))
        if not differences:
            return {}
        found = _together(differences)
        masks = {"mask, 1 - intersection over union": found.mask} if "masks" in self.output_names else {}
        counted = f"objects missing or new, of {objects} objects in {len(images)} images"
        agreement = {counted: found.lost, "box, pixels": found.box, "score": found.score, **masks}
        limits = (_MAX_LOST * objects, *_LIMITS)
        if not all(value <= limit for value, limit in zip(found, limits, strict=True)):
            # Rounding decides between objects of equal scores, which a model that has hardly learned has many
            # of: so much may a file differ, too.
            own = _together([self._own_difference(image) for image in images])
            text = "; ".join(f"{name}: {value:.2g}" for name, value in agreement.items())
            text += f"; rounding alone changes {own.lost} of the model's own"
            accepted = (max(limit, 2 * each) for limit, each in zip(limits, own, strict=True))
            if not all(value <= limit for value, limit in zip(found, accepted, strict=True)):
                raise ValueError(f"{text}. Train it longer, or name other images with --data")
            logger.warning("%s: a model that was trained longer is compared better", text)
        if objects:
            return agreement
        logger.warning(
            "the model detects nothing in %d images: that the file detects what the model does is not "
            "verified. Train it longer, or name images with --data",
            len(images),
        )
        return {}

    def _own_difference(self, image: Image.Image) -> _Difference:
        """How results of the model itself change with noise as large as rounding."""
        pixels = self.predictor.transform(image)[None]
        noise = _NOISE * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
        return _compare(self.graph(pixels + noise), self.graph(pixels))


class _OneImage(nn.Module):
    """A detector of lists of images as a function of one, 1 C H W."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.detector([images[0]])[0]
        masks = (output["masks"][:, 0],) if "masks" in output else ()
        return output["boxes"], output["scores"], output["labels"] - 1, *masks


class _Difference(NamedTuple):
    lost: int
    """objects that only one of two has"""
    box: float
    """largest difference of coordinates of the others, in pixels"""
    score: float
    mask: float
    """1 − intersection over union"""


def _together(differences: list[_Difference]) -> _Difference:
    """Of several images: the sum of the lost, and the largest of the others."""
    lost, *others = zip(*differences, strict=True)
    return _Difference(sum(lost), *(max(values) for values in others))


def _compare(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> _Difference:
    """Objects of two lists, matched by class and overlap: their order is not the same where scores are."""
    boxes, scores, labels = actual[:3]
    free, pairs = list(range(len(boxes))), []
    overlap = box_iou(expected[0], boxes)
    for i, label in enumerate(expected[2]):
        fitting = [j for j in free if labels[j] == label and overlap[i, j] > 0.9]
        if fitting:
            best = max(fitting, key=lambda j: (float(overlap[i, j]), -abs(float(scores[j] - expected[1][i]))))
            free.remove(best)
            pairs.append((i, best))
    lost = len(expected[0]) - len(pairs) + len(free)
    box = max((float((expected[0][i] - boxes[j]).abs().max()) for i, j in pairs), default=0.0)
    score = max((float((expected[1][i] - scores[j]).abs()) for i, j in pairs), default=0.0)
    masks = [(expected[3][i] > 0.5, actual[3][j] > 0.5) for i, j in pairs] if len(expected) > 3 else []
    mask = max(
        (1 - float((a & b).sum() / (a | b).sum().clamp_min(1)) for a, b in masks if a.any()), default=0.0
    )
    return _Difference(lost, box, score, mask)
