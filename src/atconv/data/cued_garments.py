"""Cued garments: a data set made from real pictures whose label is a relation between them.

A frame of 64 × 64 gray pixels shows two garments of different classes (Fashion-MNIST), a handwritten digit
0 or 1 (scikit-learn's scans) and clutter. The digit says which garment counts: 0 the left one, 1 the right
one. The label is its class, one of ten. Who knows the garments but not what the digit means is right in half
of the frames.

Frame i of a side is a function of (seed, side, i) alone: `draw_frame` says how. Training frames are made of
Fashion-MNIST's training pictures and of every digit but each fifth; test frames of its test pictures and of
those.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atconv.data.garments import Pixels, lay, lay_fragments, load_garments, scale
from atconv.data.lmdb_format import build_lmdb
from atconv.engine.progress import plain_console, track

__all__ = ["FRAME", "Frame", "Material", "build_cued_garments", "draw_frame", "load_material"]

FRAME = 64  # pixels along a side
_GARMENTS = _CUES = 2
_LEAST, _MOST = 20, 28  # side of a garment
_CUE_SIDE = 16
_FRAGMENTS, _FRAGMENT_SIDE, _FADED = 8, 8, 0.5
_APART = 4  # pixels between the middles of garments, from left to right
_SIDES = ("train", "test")

Box = tuple[int, int, int]
"""top, left, side"""


@dataclass(frozen=True)
class Material:
    """The pictures that frames of one side are made of."""

    garments: Pixels
    """N 28 28"""
    classes: NDArray[np.int64]
    """N"""
    names: list[str]
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


def draw_frame(material: Material, seed: int, side: int, index: int) -> Frame:
    """Frame `index` of a side (0 train, 1 test).

    From numpy's default_rng([seed, side, index]), in this order: eight fragments of 8 × 8 at half
    brightness, cut anywhere from any garment and laid anywhere; two classes, a garment of each; the digit
    and one of its scans; sides of 20 to 28 pixels for the garments, 16 for the digit; places, drawn again
    until no two boxes touch and the garments' middles are at least 4 pixels apart from left to right.
    Everything is scaled bilinearly and laid over what is there by the maximum.
    """
    rng = np.random.default_rng([seed, side, index])
    pixels = np.zeros((FRAME, FRAME), dtype=np.uint8)
    lay_fragments(rng, pixels, material.garments, _FRAGMENTS, _FRAGMENT_SIDE, _FADED)
    classes = [int(c) for c in rng.choice(len(material.names), _GARMENTS, replace=False)]
    pictures = [material.garments[rng.choice(np.flatnonzero(material.classes == c))] for c in classes]
    cue = int(rng.integers(_CUES))
    pictures.append(material.digits[cue][rng.integers(len(material.digits[cue]))])
    sides = [*(int(s) for s in rng.integers(_LEAST, _MOST + 1, _GARMENTS)), _CUE_SIDE]
    boxes = _places(rng, sides)
    for picture, (top, left, length) in zip(pictures, boxes, strict=True):
        lay(pixels, scale(picture, length), top, left)
    from_left = sorted(range(_GARMENTS), key=lambda i: _middle(boxes[i]))
    return Frame(pixels, classes[from_left[cue]], cue, classes, boxes)


def load_material(data_root: Path, side: str) -> Material:
    """The pictures of a side ("train" or "test"), from what `atconv data fashion-mnist` laid out.

    Raises:
        FileNotFoundError: Fashion-MNIST is not there.
    """
    garments = load_garments(data_root, side)
    return Material(garments.pictures, garments.classes, garments.names, digit_scans(side))


def digit_scans(side: str) -> list[Pixels]:
    """scikit-learn's scans of each digit that is a cue, N 8 8: every fifth for "test", others for "train"."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = np.rint(scans.images * (255 / 16)).astype(np.uint8)  # values are 0…16 ink counts
    fifth = np.arange(len(pixels)) % 5 == 0
    kept = ~fifth if side == "train" else fifth
    return [pixels[kept & (scans.target == cue)] for cue in range(_CUES)]


def build_cued_garments(
    data_root: Path, out: Path, train: int = 60_000, test: int = 10_000, seed: int = 0
) -> Path:
    """Write OUT/train.lmdb and OUT/test.lmdb, which `atconv train OUT` takes.

    Args:
        data_root: what `atconv data fashion-mnist` wrote.
        out: folder to write.
        train: training frames.
        test: test frames.
        seed: of the frames.

    Returns:
        the folder.

    Raises:
        FileNotFoundError: Fashion-MNIST is not there.
        ValueError: no frames were asked for, or the files exist.
    """
    if min(train, test) < 1 or seed < 0:
        raise ValueError(
            f"train and test must be at least 1 and seed at least 0, got {train}, {test}, {seed}"
        )
    out = Path(out)
    there = [str(out / f"{side}.lmdb") for side in _SIDES if (out / f"{side}.lmdb").exists()]
    if there:
        raise ValueError(f"{' and '.join(there)} exist already: remove them, or name another folder")
    materials = [load_material(Path(data_root), side) for side in _SIDES]
    out.mkdir(parents=True, exist_ok=True)
    for number, (side, count) in enumerate(zip(_SIDES, (train, test), strict=True)):
        records = _records(materials[number], seed, number, count)
        shown = track(records, plain_console(), f"{side} frames", count)
        build_lmdb(out / f"{side}.lmdb", shown, count, materials[number].names)
    return out


def _records(material: Material, seed: int, side: int, count: int) -> Iterator[tuple[bytes, int]]:
    for index in range(count):
        frame = draw_frame(material, seed, side, index)
        file = io.BytesIO()
        Image.fromarray(frame.pixels).save(file, "PNG")
        yield file.getvalue(), frame.label


def _places(rng: np.random.Generator, sides: list[int]) -> list[Box]:
    """A place for each side, drawn together until they fit."""
    while True:
        boxes: list[Box] = []
        for side in sides:
            top, left = rng.integers(0, FRAME - side + 1, 2)
            boxes.append((int(top), int(left), side))
        middles = sorted(_middle(box) for box in boxes[:_GARMENTS])
        apart = all(b - a >= _APART for a, b in pairwise(middles))
        if apart and not any(_touch(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
            return boxes


def _touch(a: Box, b: Box) -> bool:
    return all(a[axis] <= b[axis] + b[2] and b[axis] <= a[axis] + a[2] for axis in (0, 1))


def _middle(box: Box) -> float:
    return box[1] + box[2] / 2
