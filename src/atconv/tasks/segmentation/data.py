"""From pictures and masks to what a segmenter takes: normalized, of sizes that it divides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from atconv.data.images import Mode, PrepareImage
from atconv.data.masks import IGNORED, MaskSplit
from atconv.models.normalization import normalization
from atconv.models.segmenters import DIVISOR
from atconv.tasks.segmentation.config import SegmentationConfig

__all__ = ["SegmentTransform", "augmentation", "eval_batch", "example", "resized"]


_LONGEST = 10  # times the shorter side


class SegmentTransform:
    """What evaluation does to any PIL image → C H W: shorter side resized, normalized, padded to multiples of
    32 at the right and bottom."""

    def __init__(
        self, in_chans: int, short_side: int, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        self.in_chans, self.short_side, self.prepare = in_chans, short_side, PrepareImage(in_chans)
        self.mode = self.prepare.mode
        self.mean, self.std = normalization(in_chans, mean, std)
        self.steps = v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.mean), list(self.std)),
            ]
        )

    def __call__(self, image: Image.Image) -> Tensor:
        x = v2.functional.pil_to_tensor(self.prepare(image))
        size = list(resized(x.shape[-2:], self.short_side))
        x = self.steps(v2.functional.resize(x, size, antialias=True))
        height, width = x.shape[-2:]
        return F.pad(x, (0, -width % DIVISOR, 0, -height % DIVISOR))

    def undo(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits of a padded input, … K H W, at the size of its picture (height, width)."""
        height, width = resized(size, self.short_side)
        shown = logits[..., :height, :width]
        return F.interpolate(shown, size=size, mode="bilinear", align_corners=False)


def resized(size: Sequence[int], short_side: int) -> tuple[int, int]:
    """Height and width of a picture whose shorter side becomes `short_side`; where one is more than ten times
    as long as wide, its longer side becomes ten times that."""
    short = max(min(size), -(-max(size) // _LONGEST))
    height, width = (max(1, short_side * side // short) for side in size)
    return height, width


class _RandomShortSide(v2.Transform):
    """Resize as `resized` does, to a shorter side of least … most pixels."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__()
        self.least, self.most = least, most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        short_side = int(torch.randint(self.least, self.most + 1, ()))
        return {"size": list(resized(v2.functional.get_size(flat_inputs[0]), short_side))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resize(inpt, params["size"], antialias=True)


def example(side: MaskSplit, position: int, mode: Mode) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """A picture, C H W uint8, and its mask, H W, as v2 transforms take them."""
    image = v2.functional.pil_to_tensor(side.read(position, mode))
    return tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(side.mask(position)))


def augmentation(config: SegmentationConfig) -> v2.Transform:
    """Picture and mask together: flip, color, a random scale, normalized, a random crop. What the crop adds
    is the mean color and is left out of the loss."""
    mean, std = normalization(config.in_chans, config.mean, config.std)
    jitter = config.color_jitter
    least, most = (max(1, round(config.short_side * scale)) for scale in config.scales)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(config.hflip),
            *([v2.ColorJitter(jitter, jitter, jitter)] if jitter else []),
            _RandomShortSide(least, most),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.Normalize(list(mean), list(std)),
            v2.RandomCrop(
                config.crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
            ),
            v2.ToPureTensor(),
        ]
    )


def eval_batch(
    side: MaskSplit, positions: Sequence[int], transform: SegmentTransform
) -> tuple[Tensor, list[Tensor]]:
    """Inputs (B C H W) of pictures of one size, and their masks (each H W)."""
    inputs = torch.stack([transform(side.read(i, transform.mode)) for i in positions])
    return inputs, [torch.from_numpy(side.mask(i)) for i in positions]
