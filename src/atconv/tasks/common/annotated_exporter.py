"""What exports of detectors and segmenters share: images in 0…1 of any size."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atconv.data.images import preparation
from atconv.tasks.common.exporter import Exporter

__all__ = ["AnnotatedExporter"]


class AnnotatedExporter(Exporter):
    """The file resizes, normalizes and pads images itself, and brings results to the image's size."""

    def image_input(self) -> dict[str, Any]:
        """What the input must look like."""
        steps = [*preparation(self.predictor.transform.mode), "divide by 255"]
        axes = {"dtype": "float32", "axes": "batch channels height width"}
        return {"images": {**axes, "channels": self.shape[0], "preparation": steps}}

    def inputs(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(batch + height + width)
        return (torch.rand(batch, self.shape[0], height, width, generator=generator),)

    def fit(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image.resize((size[1], size[0]))

    def images(self, data: str | None, data_root: str | None, count: int) -> list[Image.Image]:
        if data_root is not None:
            raise ValueError(f"data_root is for classification runs, this is a {self.predictor.task} run")
        _, split = self.predictor.choose_split(data, "auto")
        return [split.read(i, self.predictor.transform.mode) for i in range(min(count, len(split)))]
