"""From annotated images to what a detector takes: an image in 0…1 and the boxes, labels and masks in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from atconv.data.boxes.split import BoxSplit
from atconv.data.images import PrepareImage, mode_for
from atconv.tasks.detection.config import DetectionConfig

__all__ = [
    "DetectionTransform",
    "EvalExamples",
    "Target",
    "TrainExamples",
    "augmentation",
    "collate",
    "load_target",
]

Target = dict[str, Any]


class DetectionTransform:
    """Any PIL image → C H W in 0…1, as a detector reads it; it resizes and normalizes itself."""

    def __init__(self, in_chans: int) -> None:
        self.prepare = PrepareImage(in_chans)
        self.mode = self.prepare.mode

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = v2.functional.pil_to_tensor(self.prepare(image))
        return v2.functional.to_dtype(pixels, torch.float32, scale=True)


class TrainExamples:
    """A training image, C H W in 0…1, and its objects but for crowds, augmented, by position."""

    def __init__(self, split: BoxSplit, config: DetectionConfig) -> None:
        self.split, self.masks, self.mode = split, config.masks, mode_for(config.in_chans)
        self.augmentation = augmentation(config.hflip, config.color_jitter)

    def __call__(self, position: int) -> tuple[Tensor, Target]:
        image = tv_tensors.Image(v2.functional.pil_to_tensor(self.split.read(position, self.mode)))
        target = load_target(self.split, position, self.masks)
        single = ~target["iscrowd"].bool()
        boxes = tv_tensors.BoundingBoxes(target["boxes"][single], format="XYXY", canvas_size=image.shape[-2:])
        objects: Target = {"boxes": boxes, "labels": target["labels"][single]}
        if self.masks:
            objects["masks"] = tv_tensors.Mask(target["masks"][single])
        return self.augmentation(image, objects)


def load_target(split: BoxSplit, position: int, masks: bool) -> Target:
    """The annotations of an image, as torchmetrics takes them: boxes (N 4, left top right bottom), labels,
    area, iscrowd, and masks (N H W) where asked for."""
    boxes = split.boxes(position)
    target: Target = {
        "boxes": torch.tensor([box.corners for box in boxes], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([box.label for box in boxes], dtype=torch.int64),
        "iscrowd": torch.tensor([int(box.crowd) for box in boxes], dtype=torch.int64),
    }
    if masks:
        decoded = split.masks(position)
        empty = np.zeros((0, *split.size(position)), dtype=np.uint8)
        target["masks"] = torch.from_numpy(np.stack(decoded) if decoded else empty)
    # Areas bucket objects into small, medium and large. Where the file has none: of masks, else of boxes.
    extents = target["boxes"][:, 2:] - target["boxes"][:, :2]
    measured = target["masks"].sum((1, 2)).float() if masks else extents.prod(1)
    annotated = torch.tensor([math.nan if box.area is None else box.area for box in boxes])
    target["area"] = torch.where(annotated.isnan(), measured, annotated)
    return target


def augmentation(hflip: float, jitter: float) -> v2.Transform:
    """Image and target together; the detector itself samples sizes."""
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(hflip),
            *([v2.ColorJitter(jitter, jitter, jitter)] if jitter else []),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.ToPureTensor(),
        ]
    )


def collate(examples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """A batch of images, which differ in size, and their targets."""
    return [image for image, _ in examples], [target for _, target in examples]


class EvalExamples:
    """An image, C H W in 0…1, and its annotations, by position."""

    def __init__(self, split: BoxSplit, transform: DetectionTransform, masks: bool) -> None:
        self.split, self.transform, self.masks = split, transform, masks

    def __call__(self, position: int) -> tuple[Tensor, Target]:
        image = self.transform(self.split.read(position, self.transform.mode))
        return image, load_target(self.split, position, self.masks)
