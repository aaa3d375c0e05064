"""What a classifier's training images go through."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose, RandomAffine
from torchvision.transforms.functional import InterpolationMode

from atconv.tasks.classification.config import ClassificationConfig

__all__ = ["train_transform"]


def train_transform(config: ClassificationConfig) -> Callable[[Image.Image], Tensor]:
    """timm's training transform for a configuration, after a rotation and shift where they are asked for.

    Raises:
        ValueError: timm does not know the automatic augmentation.
    """
    mean, std = config.normalization()
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
