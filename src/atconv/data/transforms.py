"""What evaluation does to an image before a classifier sees it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from atconv.data.images import PrepareImage, preparation
from atconv.data.reduced import Cut, CutImage

__all__ = ["EvalTransform"]


class EvalTransform:
    """The evaluation transform that a timm pretrained_cfg describes, for any PIL image → C H W."""

    def __init__(self, pretrained_cfg: dict[str, Any]) -> None:
        data = resolve_data_config({}, pretrained_cfg=pretrained_cfg)
        self.data: dict[str, Any] = data
        self.input_size: tuple[int, int, int] = tuple(data["input_size"])
        self.prepare = PrepareImage(self.input_size[0])
        self.transform = create_transform(**data, is_training=False)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(self.prepare(image))

    @property
    def reduced(self) -> CutImage:
        """A step before it that resizes images as they are read, of JPEGs decoded no larger than needed."""
        resize = self.transform.transforms[0]
        return CutImage(self.input_size[0], partial(_resized, resize.size, resize.interpolation.name))

    def describe(self) -> dict[str, Any]:
        """What it does, for programs that must do the same: "preparation" says it step by step."""
        names = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
        channels, height, width = self.input_size
        shorter = math.floor(min(height, width) / self.data["crop_pct"])
        steps = [
            *preparation(self.prepare.mode),
            f"resize the shorter side to {shorter} and the longer in proportion, rounded down, by Pillow's "
            f"{self.data['interpolation']} filter",
            f"cut {height} × {width} from the center, offsets rounded, halves to even",
            "divide by 255, subtract mean and divide by std, channel by channel",
        ]
        about = {"channels": channels, "size": [height, width], "preparation": steps}
        return about | {name: self.data[name] for name in names}


def _resized(short: int, interpolation: str, width: int, height: int) -> Cut:
    """The whole image with its shorter side resized, as torchvision does it."""
    long = int(short * max(width, height) / min(width, height))
    size = (short, long) if width <= height else (long, short)
    return Cut((0, 0, width, height), size, Image.Resampling[interpolation])
