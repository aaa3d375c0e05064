"""From an annotated side to what a detector takes: a picture in 0…1 and the boxes, labels and masks in it."""

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

from atconv.data.coco import CocoSplit
from atconv.data.coco_checks import decode_mask
from atconv.data.images import Mode

__all__ = ["Target", "augmentation", "eval_batch", "example", "picture_tensor", "target_of"]

Target = dict[str, Any]


def picture_tensor(image: Image.Image) -> Tensor:
    """C H W in 0…1."""
    return v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)


def example(side: CocoSplit, position: int, mode: Mode, masks: bool) -> tuple[tv_tensors.Image, Target]:
    """A training picture, C H W uint8, and what it shows but for crowds, as v2 transforms take them."""
    image = tv_tensors.Image(v2.functional.pil_to_tensor(side.read(position, mode)))
    target = target_of(side, position, masks)
    kept = ~target["iscrowd"].bool()
    boxes = tv_tensors.BoundingBoxes(target["boxes"][kept], format="XYXY", canvas_size=image.shape[-2:])
    told: Target = {"boxes": boxes, "labels": target["labels"][kept]}
    if masks:
        told["masks"] = tv_tensors.Mask(target["masks"][kept])
    return image, told


def target_of(side: CocoSplit, position: int, masks: bool) -> Target:
    """What a picture shows, as torchmetrics takes it: boxes (N 4, left top right bottom), labels, area,
    iscrowd, and masks (N H W) where asked."""
    image = side.images[position]
    boxes = image.boxes
    target: Target = {
        "boxes": torch.tensor([box.corners for box in boxes], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([box.label for box in boxes], dtype=torch.int64),
        "iscrowd": torch.tensor([int(box.crowd) for box in boxes], dtype=torch.int64),
    }
    if masks:
        found = [decode_mask(box.segmentation, image.height, image.width) for box in boxes]
        empty = np.zeros((0, image.height, image.width), dtype=np.uint8)
        target["masks"] = torch.from_numpy(np.stack(found) if found else empty)
    # Where the file does not tell areas, of masks, or else of boxes: they part objects by size.
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    own = target["masks"].sum((1, 2)).float() if masks else sides.prod(1)
    told = torch.tensor([math.nan if box.area is None else box.area for box in boxes])
    target["area"] = torch.where(told.isnan(), own, told)
    return target


def augmentation(hflip: float, jitter: float) -> v2.Transform:
    """Picture and target together; sizes are drawn by the detector itself."""
    changed = [v2.ColorJitter(jitter, jitter, jitter)] if jitter else []
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(hflip),
            *changed,
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.ToPureTensor(),
        ]
    )


def eval_batch(
    side: CocoSplit, positions: Sequence[int], mode: Mode, masks: bool
) -> tuple[list[Tensor], list[Target]]:
    """Pictures in 0…1, and what they show."""
    images = [picture_tensor(side.read(i, mode)) for i in positions]
    return images, [target_of(side, i, masks) for i in positions]
