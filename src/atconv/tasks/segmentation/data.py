"""From images and masks to what a segmenter takes: normalized, of sizes that it divides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from atconv.data.images import PrepareImage, mode_for
from atconv.data.masks.split import IGNORED, MaskSplit
from atconv.models.normalization import normalization
from atconv.models.segmenters import DIVISOR
from atconv.tasks.segmentation.config import SegmentationConfig

__all__ = [
    "MAX_RATIO",
    "Classify",
    "EvalExamples",
    "SegmentationTransform",
    "TrainExamples",
    "augmentation",
    "predictions",
    "resized",
]

MAX_RATIO = 10
"""of the longer side to the shorter side, after resizing"""

Classify = Callable[[Tensor, tuple[int, int]], Tensor]
"""Inputs of images of one size (B C H W), and this size → class indices, B height width"""


class SegmentationTransform:
    """Any PIL image → C H W for evaluation: shorter side resized, normalized, padded at the right and
    bottom to multiples of 32."""

    def __init__(
        self, in_chans: int, short_side: int, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        self.short_side, self.prepare = short_side, PrepareImage(in_chans)
        self.mode = self.prepare.mode
        self.mean, self.std = normalization(in_chans, mean, std)

    def pixels(self, image: Image.Image) -> Tensor:
        """C H W in 0…1, as large as the image."""
        return v2.functional.to_dtype(
            v2.functional.pil_to_tensor(self.prepare(image)), torch.float32, scale=True
        )

    def __call__(self, image: Image.Image) -> Tensor:
        x = self.pixels(image)
        x = v2.functional.resize(x, list(resized(x.shape[-2:], self.short_side)), antialias=True)
        x = v2.functional.normalize(x, list(self.mean), list(self.std))
        height, width = x.shape[-2:]
        return F.pad(x, (0, -width % DIVISOR, 0, -height % DIVISOR))

    def undo(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits of a padded input, … K H W, at the size of its image (height, width)."""
        height, width = resized(size, self.short_side)
        return F.interpolate(logits[..., :height, :width], size=size, mode="bilinear", align_corners=False)


def resized(size: Sequence[int], short_side: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side becomes `short_side`; but its longer side never becomes
    more than ten times that."""
    short = max(min(size), -(-max(size) // MAX_RATIO))
    height, width = (max(1, short_side * length // short) for length in size)
    return height, width


class _RandomShortSide(v2.Transform):
    """Resize as `resized` does, to a shorter side of `minimum` … `maximum` pixels."""

    def __init__(self, minimum: int, maximum: int) -> None:
        super().__init__()
        self.minimum, self.maximum = minimum, maximum

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        short_side = int(torch.randint(self.minimum, self.maximum + 1, ()))
        return {"size": list(resized(v2.functional.get_size(flat_inputs[0]), short_side))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resize(inpt, params["size"], antialias=True)


class TrainExamples:
    """A training input, C H W, and its mask, H W, augmented, by position."""

    def __init__(self, split: MaskSplit, config: SegmentationConfig) -> None:
        self.split, self.mode = split, mode_for(config.in_chans)
        self.augmentation = augmentation(config)

    def __call__(self, position: int) -> tuple[Tensor, Tensor]:
        image = v2.functional.pil_to_tensor(self.split.read(position, self.mode))
        mask = torch.from_numpy(self.split.mask(position))
        return self.augmentation(tv_tensors.Image(image), tv_tensors.Mask(mask))


def augmentation(config: SegmentationConfig) -> v2.Transform:
    """Image and mask together: flip, color, a random scale, normalized, a random crop. What the crop adds is
    the mean color and is ignored by the loss."""
    mean, std = normalization(config.in_chans, config.mean, config.std)
    jitter = config.color_jitter
    minimum, maximum = (max(1, round(config.short_side * scale)) for scale in config.scales)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(config.hflip),
            *([v2.ColorJitter(jitter, jitter, jitter)] if jitter else []),
            _RandomShortSide(minimum, maximum),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.Normalize(list(mean), list(std)),
            v2.RandomCrop(
                config.crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
            ),
            v2.ToPureTensor(),
        ]
    )


class EvalExamples:
    """An input, C H W, and its mask, H W at the size of the image, by position."""

    def __init__(self, split: MaskSplit, transform: SegmentationTransform) -> None:
        self.split, self.transform = split, transform

    def __call__(self, position: int) -> tuple[Tensor, Tensor]:
        image = self.transform(self.split.read(position, self.transform.mode))
        return image, torch.from_numpy(self.split.mask(position))


def predictions(
    batches: Iterable[tuple[Tensor, Tensor]], classify: Classify
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mask and prediction of each image, H W of class indices, at the size of the image, from batches of
    `EvalExamples` of one size."""
    for inputs, masks in batches:
        height, width = masks.shape[1:]
        yield from zip(masks, classify(inputs, (height, width)), strict=True)
