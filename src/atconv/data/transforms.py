"""What evaluation does to an image before a classifier sees it."""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from atconv.data.images import PrepareImage

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

    def describe(self) -> dict[str, Any]:
        """What it does, for programs that must do the same: resize the shorter side to the size divided by
        crop_pct, cut the center, scale values to 0…1, subtract mean, divide by std."""
        names = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
        channels, *size = self.input_size
        return {"channels": channels, "size": size} | {name: self.data[name] for name in names}
