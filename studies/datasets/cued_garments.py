"""Cued garments: a data set made from real images whose label is a relation between them.

python -m studies.datasets.cued_garments ROOT OUT [--train N] [--test N] [--seed N]

A frame of 64 × 64 gray pixels shows two garments of different classes (Fashion-MNIST), a handwritten digit
0 or 1 (scikit-learn's scans) and clutter. The digit says which garment counts: 0 the left one, 1 the right
one. The label is its class, one of ten. Who knows the garments but not what the digit means is right in half
of the frames.

Frame i of a split is a function of (seed, split, i) alone: `make_frame` says how. Training frames are made of
Fashion-MNIST's training images and of four fifths of the digits; test frames of its test images and of the
other fifth.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from atconv.data.sources.lmdb_file import build_lmdb
from studies.datasets import run_command
from studies.datasets.garments import Garments, Pixels, load_garments, paste, paste_fragments, scale

__all__ = ["SIZE", "Frame", "Parts", "build_cued_garments", "load_parts", "make_frame"]

SIZE = 64
"""height and width of a frame"""

_GARMENTS = _CUES = 2
_MIN_GARMENT, _MAX_GARMENT, _CUE = 20, 28, 16  # sizes in pixels
_FRAGMENTS, _FRAGMENT, _BRIGHTNESS = 8, 8, 0.5
_MIN_DISTANCE = 4  # pixels between the centers of garments, from left to right
_SPLITS = ("train", "test")

Box = tuple[int, int, int]
"""top, left, size"""


@dataclass(frozen=True)
class Parts:
    """The images that frames of one split are made of."""

    garments: Garments
    digits: list[Pixels]
    """for each cue its scans, M 8 8"""


@dataclass(frozen=True)
class Frame:
    """One example, and how it came about."""

    pixels: Pixels
    """64 64"""
    label: int
    cue: int
    classes: list[int]
    """of the garments, in the order of `boxes`"""
    boxes: list[Box]
    """of the garments, then of the digit; none touches another"""


def make_frame(parts: Parts, seed: int, split: int, index: int) -> Frame:
    """Frame `index` of a split (0 train, 1 test).

    Choices come from numpy's default_rng([seed, split, index]), in this order: eight fragments of 8 × 8 at
    half brightness, cut from anywhere in any garment and pasted anywhere; two classes, a garment of each; the
    digit and one of its scans; sizes of 20 to 28 pixels for the garments (16 for the digit); positions,
    sampled again until no two boxes touch and the garments' centers are at least 4 pixels apart from left to
    right. Images are scaled bilinearly and pasted over what is there by the maximum.
    """
    rng = np.random.default_rng([seed, split, index])
    pixels = np.zeros((SIZE, SIZE), dtype=np.uint8)
    garments = parts.garments
    paste_fragments(rng, pixels, garments.images, _FRAGMENTS, _FRAGMENT, _BRIGHTNESS)
    classes = [int(c) for c in rng.choice(len(garments.classes), _GARMENTS, replace=False)]
    images = [garments.images[rng.choice(np.flatnonzero(garments.labels == c))] for c in classes]
    cue = int(rng.integers(_CUES))
    images.append(parts.digits[cue][rng.integers(len(parts.digits[cue]))])
    sizes = [*(int(s) for s in rng.integers(_MIN_GARMENT, _MAX_GARMENT + 1, _GARMENTS)), _CUE]
    boxes = _sample_boxes(rng, sizes)
    for image, (top, left, size) in zip(images, boxes, strict=True):
        paste(pixels, scale(image, size), top, left)
    from_left = sorted(range(_GARMENTS), key=lambda i: _center(boxes[i]))
    return Frame(pixels, classes[from_left[cue]], cue, classes, boxes)


def load_parts(data_root: Path, split: str) -> Parts:
    """The images of a split ("train" or "test").

    Raises:
        FileNotFoundError: Fashion-MNIST is not there.
    """
    return Parts(load_garments(data_root, split), digit_scans(split))


def digit_scans(split: str) -> list[Pixels]:
    """scikit-learn's scans of each digit that is a cue, N 8 8: for "test" every fifth."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = np.rint(scans.images * (255 / 16)).astype(np.uint8)  # values are 0…16 ink counts
    fifth = np.arange(len(pixels)) % 5 == 0
    chosen = ~fifth if split == "train" else fifth
    return [pixels[chosen & (scans.target == cue)] for cue in range(_CUES)]


def build_cued_garments(
    data_root: Path, out: Path, train: int = 60_000, test: int = 10_000, seed: int = 0
) -> Path:
    """Write OUT/train.lmdb and OUT/test.lmdb, which `atconv train OUT` takes.

    Args:
        data_root: what `python -m studies.datasets.fashion_mnist` wrote.
        out: folder to write.
        train: training frames.
        test: test frames.
        seed: of the frames.

    Returns:
        the folder.

    Raises:
        FileNotFoundError: Fashion-MNIST is not there.
        ValueError: a count or the seed is too small, or the files exist.
    """
    if min(train, test) < 1 or seed < 0:
        raise ValueError(
            f"train and test must be at least 1 and seed at least 0, got {train}, {test}, {seed}"
        )
    existing = [str(out / f"{split}.lmdb") for split in _SPLITS if (out / f"{split}.lmdb").exists()]
    if existing:
        raise ValueError(f"{' and '.join(existing)} exist already: remove them, or name another folder")
    parts = [load_parts(data_root, split) for split in _SPLITS]
    out.mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(zip(_SPLITS, (train, test), strict=True)):
        records = _records(parts[number], seed, number, count)
        shown = tqdm(records, desc=f"{split} frames", total=count, disable=None, leave=False)
        build_lmdb(out / f"{split}.lmdb", shown, count, parts[number].garments.classes)
    return out


def _records(parts: Parts, seed: int, split: int, count: int) -> Iterator[tuple[bytes, int]]:
    for index in range(count):
        frame = make_frame(parts, seed, split, index)
        file = io.BytesIO()
        Image.fromarray(frame.pixels).save(file, "PNG")
        yield file.getvalue(), frame.label


def _sample_boxes(rng: np.random.Generator, sizes: list[int]) -> list[Box]:
    """A box of each size, sampled together until they fit."""
    while True:
        boxes: list[Box] = []
        for size in sizes:
            top, left = rng.integers(0, SIZE - size + 1, 2)
            boxes.append((int(top), int(left), size))
        centers = sorted(_center(box) for box in boxes[:_GARMENTS])
        apart = all(b - a >= _MIN_DISTANCE for a, b in pairwise(centers))
        if apart and not any(_touch(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
            return boxes


def _touch(a: Box, b: Box) -> bool:
    return all(a[axis] <= b[axis] + b[2] and b[axis] <= a[axis] + a[2] for axis in (0, 1))


def _center(box: Box) -> float:
    return box[1] + box[2] / 2


if __name__ == "__main__":
    run_command(build_cued_garments)
