"""What data sets made of garments share: Fashion-MNIST by split, and how a garment is pasted into a frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Garments", "Pixels", "load_garments", "paste", "paste_fragments", "scale"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Garments:
    """Images of garments and their classes."""

    images: Pixels
    """N 28 28"""
    labels: NDArray[np.int64]
    """N, class indices"""
    classes: list[str]
    """names of the classes"""


def load_garments(data_root: Path, split: str) -> Garments:
    """Fashion-MNIST's images of a split ("train" or "test") that `studies.datasets.fashion_mnist` unpacked.

    Raises:
        FileNotFoundError: Fashion-MNIST is not there.
    """
    from torchvision.datasets import FashionMNIST

    try:
        dataset = FashionMNIST(str(data_root), train=split == "train")
    except RuntimeError:
        raise FileNotFoundError(
            f"no Fashion-MNIST in {data_root}: unpack it with "
            f"python -m studies.datasets.fashion_mnist {data_root}"
        ) from None
    return Garments(dataset.data.numpy(), dataset.targets.numpy(), list(dataset.classes))


def scale(image: Pixels, size: int) -> Pixels:
    """An image scaled bilinearly to size × size."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def paste(pixels: Pixels, image: Pixels, top: int, left: int) -> None:
    """Paste an image over what is there, by the maximum, in place."""
    height, width = image.shape
    part = pixels[top : top + height, left : left + width]
    np.maximum(part, image, out=part)


def paste_fragments(
    rng: np.random.Generator, pixels: Pixels, images: Pixels, count: int, size: int, brightness: float
) -> None:
    """Clutter, in place: squares cut from anywhere in any image, pasted anywhere.

    Args:
        rng: source of all choices.
        pixels: H W, pasted into.
        images: N 28 28, cut from.
        count: squares.
        size: of a square, in pixels.
        brightness: factor on the values of a square.
    """
    height, width = pixels.shape
    for _ in range(count):
        top, left = rng.integers(0, 28 - size + 1, 2)
        image = images[rng.integers(len(images))]
        fragment = image[top : top + size, left : left + size] * brightness
        position = rng.integers(0, [height - size + 1, width - size + 1])
        paste(pixels, fragment.astype(np.uint8), *position)
