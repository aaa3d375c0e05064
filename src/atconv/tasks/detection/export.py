"""A detector as a file: one image of any size → boxes, scores, classes, masks."""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from atconv.data.boxes.split import decode_mask
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
_MAX_BOX, _MAX_SCORE, _MAX_MASK = 0.1, 1e-3, 0.05  # differences of one object, as _Difference has them
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

    def error(self, call: Call, inputs: tuple[Tensor, ...]) -> float:
        expected = self.graph(*inputs)
        found = _compare(call(*inputs), expected)
        if found.lost > _MAX_LOST * len(expected[0]) and found.lost > 2 * self._own_lost(*inputs):
            return float("inf")
        return max(found.box / max(inputs[0].shape), found.score)

    def agreement(self, call: Call, images: list[Image.Image]) -> Agreement:
        inputs = [self.predictor.transform(image)[None] for image in images]
        differences, objects = [], 0
        for image, pixels in zip(images, inputs, strict=True):
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
            differences.append(_compare(call(pixels), tuple(expected)))
        if not differences:
            return {}
        lost = sum(each.lost for each in differences)
        if lost > _MAX_LOST * objects:
            own = sum(map(self._own_lost, inputs))
            text = f"of {objects} objects {lost} are missing or new, and rounding alone changes {own}"
            if lost > 2 * own:
                raise ValueError(f"{text}. Train it longer, or name other images with --data")
            logger.warning("%s: a model that was trained longer is compared better", text)
        if not objects:
            logger.warning("nothing is detected in %d images, so nothing is verified", len(images))
            return {}
        box, score, mask = (max(values) for values in list(zip(*differences, strict=True))[1:])
        count = f"{objects} objects in {len(images)} images"
        masks = {"mask, 1 - intersection over union": mask} if isinstance(self.model, MaskRCNN) else {}
        return {f"objects missing or new, of {count}": lost, "box, pixels": box, "score": score, **masks}

    def _own_lost(self, pixels: Tensor) -> int:
        """Objects that noise as large as rounding changes: it decides between those of equal scores, which a
        model that has hardly learned has many of."""
        expected, generator = self.graph(pixels), torch.Generator().manual_seed(0)
        noise = [_NOISE * torch.randn(pixels.shape, generator=generator) for _ in range(3)]
        return max(_compare(self.graph(pixels + each), expected).lost for each in noise)


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


def _compare(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> _Difference:
    """Objects of two lists, matched by all that they are: their order is not the same where scores are."""
    box = (expected[0][:, None] - actual[0]).abs().amax(2)
    score = (expected[1][:, None] - actual[1]).abs()
    near = (expected[2][:, None] == actual[2]) & (box <= _MAX_BOX) & (score <= _MAX_SCORE)
    free, pairs = set(range(len(actual[0]))), [(0.0, 0.0, 0.0)]
    for i, row in enumerate(near):
        masks = {j: _mask_difference(actual[3:], expected[3:], i, j) for j in free if row[j]}
        fitting = [(float(box[i, j]), float(score[i, j]), m, j) for j, m in masks.items() if m <= _MAX_MASK]
        if fitting:
            *difference, j = min(fitting)
            free.remove(j)
            pairs.append((difference[0], difference[1], difference[2]))
    lost = len(expected[0]) - len(pairs) + 1 + len(free)
    return _Difference(lost, *(max(values) for values in zip(*pairs, strict=True)))


def _mask_difference(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], i: int, j: int) -> float:
    union = sum(((a[j] > 0.5) | (e[i] > 0.5)).sum() for a, e in zip(actual, expected, strict=True))
    both = sum(((a[j] > 0.5) & (e[i] > 0.5)).sum() for a, e in zip(actual, expected, strict=True))
    return 1 - float(both / union) if union else 0.0
