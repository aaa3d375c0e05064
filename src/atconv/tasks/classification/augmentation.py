"""What a classifier's training images go through, and what its test images may."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import Compose, RandomAffine
from torchvision.transforms.functional import InterpolationMode

from atconv.data.reduced import Cut, CutImage
from atconv.tasks.classification.config import ClassificationConfig

__all__ = ["Tta", "reduced_crop", "test_time_views", "train_transform"]

Tta: TypeAlias = Literal["none", "flip", "crops"]
"""test-time augmentation"""
_SHARES = (1.0, 0.9, 0.8)


def train_transform(config: ClassificationConfig) -> Callable[[Image.Image], Tensor]:
    """timm's training transform for a configuration, after a rotation and shift where they are asked for.

    Raises:
        ValueError: timm does not know the automatic augmentation.
    """
    mean, std = config.normalization()
    # timm passes over a part without a number, but for t, which names transforms.
    parts = (config.auto_augment or "").split("-")[1:]
    wrong = [part for part in parts if part[:1] != "t" and not re.search(r"\d", part)]
    if wrong:
        raise ValueError(
            f"timm does not take auto_augment {config.auto_augment!r}: {wrong[0]!r} has no number; such as "
            "rand-m9-mstd0.5"
        )
    try:
        transform = create_transform(
            (config.in_chans, config.image_size, config.image_size),
            is_training=True,
            scale=config.crop_scale,
            ratio=config.crop_ratio,
            hflip=config.hflip,
            vflip=config.vflip,
            color_jitter=config.color_jitter or None,  # type: ignore[arg-type]  # None: no such step
            auto_augment=config.auto_augment,
            interpolation=config.interpolation,
            mean=mean,
            std=std,
            re_prob=config.erase_prob,
            re_mode="pixel",
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"timm does not take auto_augment {config.auto_augment!r}: {error}") from error
    if not config.rotate and not config.shift:
        return transform
    affine = RandomAffine(
        config.rotate, (config.shift, config.shift), interpolation=InterpolationMode.BILINEAR
    )
    return Compose([affine, transform])


def reduced_crop(transform: Any, in_chans: int) -> tuple[CutImage, Callable[[Image.Image], Tensor]]:
    """The random crop that timm's training transform begins with, as images are read, and the rest of the
    transform. The crop is the same, but of JPEGs that are decoded no larger than it needs."""
    crop, *others = transform.transforms
    return CutImage(in_chans, partial(_random_crop, crop)), Compose(others)


def _random_crop(crop: RandomResizedCropAndInterpolation, width: int, height: int) -> Cut:
    """What timm's random crop takes of an image, sampled from the same generators in the same order."""
    # It asks for nothing but the size.
    image = torch.empty(height, width, device="meta")
    y, x, h, w = crop.get_params(image, crop.scale, crop.ratio)
    several = isinstance(crop.interpolation, tuple)
    chosen = random.choice(crop.interpolation) if several else crop.interpolation
    return Cut((x, y, x + w, y + h), crop.size[::-1], Image.Resampling[chosen.name])


def test_time_views(images: Tensor, tta: Tta) -> Iterator[Tensor]:
    """The images of a batch, B C H W, as a model is shown them: as they are; and mirrored (flip); and both of
    their center crops of 90 and 80 % of the sides, resized back (crops)."""
    height, width = images.shape[2:]
    for share in _SHARES if tta == "crops" else (1.0,):
        top, left = round((1 - share) / 2 * height), round((1 - share) / 2 * width)
        crop = images[..., top : height - top, left : width - left]
        if crop.shape != images.shape:
            crop = interpolate(crop, (height, width), mode="bilinear", align_corners=False)
        yield crop
        if tta != "none":
            yield crop.flip(3)
