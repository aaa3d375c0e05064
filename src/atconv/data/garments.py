"""What pictures made of garments share: Fashion-MNIST by side, and how a garment is laid into a frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Garments", "Pixels", "lay", "lay_fragments", "load_garments", "scale"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Garments:
    """Pictures of garments and their classes."""

    pictures: Pixels
    """N 28 28"""
    classes: NDArray[np.int64]
    """N"""
    names: list[str]


def load_garments(data_root: Path, side: str) -> Garments:
    """Fashion-MNIST's pictures of a side ("train" or "test"), from what `atconv data fashion-mnist` laid out.

    Raises:
        FileNotFoundError: Fashion-MNIST is not there.
    """
    from torchvision.datasets import FashionMNIST

    try:
        found = FashionMNIST(str(data_root), train=side == "train")
    except RuntimeError:
        raise FileNotFoundError(
            f"no Fashion-MNIST in {data_root}: lay it out with atconv data fashion-mnist {data_root}"
        ) from None
    return Garments(found.data.numpy(), found.targets.numpy(), list(found.classes))


def scale(picture: Pixels, side: int) -> Pixels:
    """A picture scaled bilinearly to side × side."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))


def lay(pixels: Pixels, picture: Pixels, top: int, left: int) -> None:
    """Lay a picture over what is there, by the maximum, in place."""
    height, width = picture.shape
    part = pixels[top : top + height, left : left + width]
    np.maximum(part, picture, out=part)


def lay_fragments(
    rng: np.random.Generator, pixels: Pixels, pictures: Pixels, count: int, side: int, faded: float
) -> None:
    """Clutter, in place: squares cut anywhere from any picture, laid anywhere.

    Args:
        pixels: H W, laid into.
        pictures: N 28 28, cut from.
        side: of a square, in pixels.
        faded: factor on its brightness.
    """
    height, width = pixels.shape
    for _ in range(count):
        top, left = rng.integers(0, 28 - side + 1, 2)
        picture = pictures[rng.integers(len(pictures))]
        fragment = picture[top : top + side, left : left + side] * faded
        to = rng.integers(0, [height - side + 1, width - side + 1])
        lay(pixels, fragment.astype(np.uint8), *to)
