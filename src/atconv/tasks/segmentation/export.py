"""A segmenter as a file: images of any size → the class of every pixel."""

from __future__ import annotations

import functools
from statistics import mode
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from atconv.deploy import FORMATS, Call
from atconv.models.segmenters import DIVISOR
from atconv.tasks.common.annotated_exporter import AnnotatedExporter
from atconv.tasks.common.exporter import Agreement
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.segmentation.data import MAX_RATIO, SegmentationTransform, resized

__all__ = ["SegmentationExporter"]


class SegmentationExporter(AnnotatedExporter):
    """Images B C H W in 0…1 → B H W of class indices. The file resizes, normalizes and pads as the
    transform does, and brings logits to the size of the images; where the run averages over mirror images, so
    does the file."""

    formats = tuple(FORMATS)
    output_names = ("mask",)
    tolerance = 2e-3

    def __init__(self, predictor: Any) -> None:
        super().__init__(predictor)
        self._size: tuple[int, int] = getattr(predictor.config, "crop", SegmentationConfig.crop)
        if predictor.flip_tta:
            self.formats = tuple(name for name in self.formats if name != "executorch")
            self.why_not = "ExecuTorch's runtime fails on averages over mirror images (--flip-tta)"

    @functools.cached_property
    def graph(self) -> nn.Module:
        return _Segment(self.model, self.predictor.transform, self.predictor.flip_tta).eval()

    @property
    def shape(self) -> tuple[int, int, int]:
        size = resized(self._size, self.predictor.transform.short_side)
        return self.predictor.model_config["segmenter"]["in_chans"], *size

    def images(self, data: str | None, data_root: str | None, count: int) -> list[Image.Image]:
        """Their most frequent size is the one of a file for one size; without images, the crop's shape is."""
        images = super().images(data, data_root, count)
        if images:
            self._size = mode((image.height, image.width) for image in images)
        return images

    def describe(self) -> dict[str, Any]:
        mask = {"axes": "batch height width", "dtype": "uint8", "values": "index into classes"}
        return {"inputs": self.image_input(), "outputs": {"mask": mask}}

    def error(self, call: Call, inputs: tuple[Tensor, ...]) -> float:
        return _share(call(*inputs), self.graph(*inputs))

    def agreement(self, call: Call, images: list[Image.Image]) -> Agreement:
        shares = []
        for image in images:
            [result] = self.predictor.infer([image], [""])
            mask = call(self.predictor.transform.pixels(image)[None])
            shares.append(_share(mask[0], torch.from_numpy(result.mask)))
        if not shares:
            return {}
        if not max(shares) <= self.tolerance:
            raise ValueError(f"{100 * max(shares):.2f} % of an image's pixels have another class")
        return {f"share of pixels of another class, {len(images)} images": max(shares)}


def _share(actual: Tensor, expected: Tensor) -> float:
    """Of pixels of another class."""
    return float((actual != expected).float().mean()) if actual.shape == expected.shape else float("inf")


class _Segment(nn.Module):
    """Images in 0…1 → class indices, by operations that every format has."""

    def __init__(self, model: nn.Module, transform: SegmentationTransform, flip_tta: bool) -> None:
        super().__init__()
        self.model, self.short_side, self.flip_tta = model, transform.short_side, flip_tta
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(transform.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(transform.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        rows, columns = _resized(height, width, self.short_side)
        x = _filter(height, rows) @ images @ _filter(width, columns).transpose(0, 1)
        x = F.pad((x - self.mean) / self.std, (0, -columns % DIVISOR, 0, -rows % DIVISOR))
        scores = self.model(x)
        if self.flip_tta:
            scores = scores.softmax(1) + self.model(x.flip(3)).flip(3).softmax(1)
        scores = scores[:, :, :rows, :columns]
        resized = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
        return resized.argmax(1).to(torch.uint8)


def _resized(height: Any, width: Any, short_side: int) -> tuple[Any, Any]:
    """`resized` of data.py, of sizes that are open."""
    shortest = (torch.sym_max(height, width) + MAX_RATIO - 1) // MAX_RATIO
    short = torch.sym_max(torch.sym_min(height, width), shortest)
    return torch.sym_max(1, short_side * height // short), torch.sym_max(1, short_side * width // short)


def _filter(length: Any, resized: Any) -> Tensor:
    """Antialiased linear interpolation of an axis as a matrix, resized × length: formats that lack the
    operation have products."""
    scale = length / resized
    centers = (torch.arange(resized, dtype=torch.float32) + 0.5) * scale
    positions = torch.arange(length, dtype=torch.float32) + 0.5
    distances = (positions - centers[:, None]).abs() / torch.sym_max(scale, 1.0)
    weights = (1 - distances).relu()
    return weights / weights.sum(1, keepdim=True)
