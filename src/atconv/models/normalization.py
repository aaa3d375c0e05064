"""Mean and standard deviation that images are normalized with."""

from __future__ import annotations

from collections.abc import Sequence

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

__all__ = ["normalization"]


def normalization(
    in_chans: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel; default: ImageNet's, or 0.5 for images not in color.

    Raises:
        ValueError: there is neither one value nor one for each channel, or they are of no images.
    """
    color = in_chans == 3
    means = _per_channel("mean", mean, in_chans, IMAGENET_DEFAULT_MEAN if color else (0.5,))
    deviations = _per_channel("std", std, in_chans, IMAGENET_DEFAULT_STD if color else (0.5,))
    if not all(0 <= mean <= 1 for mean in means):
        raise ValueError(f"mean must lie in 0 … 1, of pixels divided by 255, got {means}")
    if not all(1e-3 <= deviation <= 10 for deviation in deviations):
        raise ValueError(f"std must lie in 0.001 … 10, of pixels divided by 255, got {deviations}")
    return means, deviations


def _per_channel(
    name: str, values: Sequence[float] | None, channels: int, default: tuple[float, ...]
) -> tuple[float, ...]:
    values = default if values is None else tuple(values)
    if len(values) == 1:
        values = values * channels
    if len(values) != channels:
        raise ValueError(f"{name} must have one value, or one for each of {channels} channels, got {values}")
    return values
