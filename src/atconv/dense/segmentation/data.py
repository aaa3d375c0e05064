"""From pictures and masks to what a segmenter takes: normalised, of sizes that it divides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from atconv.datasets.mask_folder import IGNORED, MaskSide
from atconv.dense.segmentation.config import SegmentationConfig
from atconv.dense.segmenter import DIVISOR
from atconv.images import Mode, PrepareImage, normalization

__all__ = ["SegmentTransform", "augmentation", "equal_batches", "example"]


_LONGEST = 10  # times the shorter side


class SegmentTransform:
    """What evaluation does to any PIL image → C H W: shorter side resized, normalised, padded to multiples of
    32 at the right and bottom. Of pictures more than ten times as long as wide the longer side is resized."""

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
        x = self.steps(v2.functional.resize(x, list(self.resized(x.shape[-2:])), antialias=True))
        height, width = x.shape[-2:]
        return F.pad(x, (0, -width % DIVISOR, 0, -height % DIVISOR))

    def resized(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width before padding."""
        short = max(min(size), -(-max(size) // _LONGEST))
        height, width = (max(1, self.short_side * side // short) for side in size)
        return height, width

    def undo(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits of a padded input, … K H W, at the size of its picture (height, width)."""
        height, width = self.resized(size)
        shown = logits[..., :height, :width]
        return F.interpolate(shown, size=size, mode="bilinear", align_corners=False)


def example(side: MaskSide, position: int, mode: Mode) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """A picture, C H W uint8, and its mask, H W, as v2 transforms take them."""
    image = v2.functional.pil_to_tensor(side.read(position, mode))
    return tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(side.mask(position)))


def augmentation(config: SegmentationConfig) -> v2.Transform:
    """Picture and mask together: flip, colour, a random scale, normalised, a random crop. What the crop adds
    is the mean colour and is left out of the loss."""
    mean, std = normalization(config.in_chans, config.mean, config.std)
    jitter = config.color_jitter
    least, most = (max(1, round(config.short_side * scale)) for scale in config.scales)
    sizes = v2.RandomResize(least, most + 1, antialias=True)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(config.hflip),
            *([v2.ColorJitter(jitter, jitter, jitter)] if jitter else []),
            sizes,
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.Normalize(list(mean), list(std)),
            v2.RandomCrop(
                config.crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
            ),
            v2.ToPureTensor(),
        ]
    )


def equal_batches(
    side: MaskSide, positions: Sequence[int], transform: SegmentTransform, size: int
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Inputs (B C H W) and masks (each H W), in batches of pictures of one size: padding one picture to
    another's size would change what is found in it, and figures would depend on the batch."""
    waiting: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for position in positions:
        image, mask = side.read(position, transform.mode), torch.from_numpy(side.mask(position))
        group = waiting[image.size]
        group.append((transform(image), mask))
        if len(group) == size:
            yield _stacked(waiting.pop(image.size))
    for group in waiting.values():
        yield _stacked(group)


def _stacked(group: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    return torch.stack([x for x, _ in group]), [mask for _, mask in group]
