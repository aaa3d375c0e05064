"""Images with boxes, and instance masks where they have them."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atconv.data.annotated import AnnotatedSplit
from atconv.data.orientation import turn_corners, turn_mask, turn_size
from atconv.io import first_few

__all__ = [
    "BadAnnotations",
    "Box",
    "BoxImage",
    "BoxSplit",
    "check_classes",
    "decode_mask",
    "encode_mask",
    "report_bad",
]

logger = logging.getLogger(__name__)

BadAnnotations = Literal["reject", "skip"]


@dataclass(frozen=True)
class Box:
    """One annotation."""

    id: int | str
    label: int
    """1 … number of classes"""
    corners: tuple[float, float, float, float]
    """left, top, right, bottom inside the image, in pixels, or in 0 … 1 where its size is not known"""
    area: float | None = None
    """in pixels, where the file has it"""
    crowd: bool = False
    """stands for many objects; not trained on, and no detection inside it counts as wrong"""
    segmentation: Any = None
    """COCO's: polygons, in the unit of `corners`, or run lengths"""

    def scaled(self, width: int, height: int) -> Box:
        """In pixels, from 0 … 1."""
        left, top, right, bottom = self.corners
        polygons = self.segmentation and [
            [value * (height if i % 2 else width) for i, value in enumerate(polygon)]
            for polygon in self.segmentation
        ]
        corners = (left * width, top * height, right * width, bottom * height)
        return replace(self, corners=corners, segmentation=polygons)


@dataclass(frozen=True)
class BoxImage:
    """One image and its boxes."""

    id: int | str
    name: str
    """relative to the folder of images"""
    width: int
    height: int
    """that boxes are for; 0 where the annotations do not say: boxes are then in 0 … 1"""
    boxes: tuple[Box, ...] = ()
    missing: str = field(default="", repr=False)
    """what it lacks, such as its XML file, and is left out for"""


@dataclass(frozen=True, kw_only=True)
class BoxSplit(AnnotatedSplit):
    """The images of one split. `items` are `BoxImage`s; labels count `classes` from 1."""

    bad: Sequence[tuple[str, str]] = ()
    """annotations that were left out: the name of the image, "" where it is not known, and what is wrong"""

    @staticmethod
    def name_of(item: BoxImage) -> str:
        return item.name

    def annotations(
        self, position: int, check: bool
    ) -> tuple[tuple[int, int] | None, Sequence[int], str | None]:
        image = self.items[position]
        if image.missing:
            raise ValueError(image.missing)
        return (image.width, image.height) if image.width else None, (), None

    def check_labels(self, labels: set[int], training: bool) -> None:
        boxes = (box.corners for image in self.items if image.width for box in image.boxes)
        first = next(boxes, None)
        if first and all(_within_a_pixel(corners) for corners in chain([first], boxes)):
            size = f"{first[2] - first[0]:.2g} × {first[3] - first[1]:.2g}"
            raise ValueError(
                f"{self.where}: no box is larger than a pixel, the first is {size}: boxes are in pixels. "
                "Where they are shares of their image, 0 … 1, multiply them by its width and height"
            )

    def has_objects(self, position: int) -> bool:
        return any(not box.crowd for box in self.items[position].boxes)

    def describe(self, position: int, problem: str) -> str:
        return self.items[position].missing or f"image {self.items[position].id}: {problem}"

    @property
    def digest(self) -> str:
        turns = self.geometry.array[:, 0].tolist()
        return hashlib.sha256(repr((self.classes, list(self.items), turns)).encode()).hexdigest()

    @property
    def objects(self) -> int:
        """How many boxes stand for one object, in all images."""
        return self.count_boxes(crowd=False).total()

    def count_boxes(self, crowd: bool) -> Counter[str]:
        """How many boxes of each class stand for many objects, or for one."""
        boxes = (box for image in self.items for box in image.boxes)
        return Counter(self.classes[box.label - 1] for box in boxes if box.crowd == crowd)

    def boxes(self, position: int) -> list[Box]:
        """The boxes of an image, upright."""
        turn, (boxes, size) = self.turn(position), self._in_pixels(position)
        return [replace(box, corners=turn_corners(box.corners, size, turn)) for box in boxes]

    def masks(self, position: int) -> list[NDArray[np.uint8]]:
        """The mask of each box of an image, upright, H W of 0 and 1."""
        boxes, (width, height) = self._in_pixels(position)
        decoded = [decode_mask(box.segmentation, height, width) for box in boxes]
        return [turn_mask(mask, self.turn(position)) for mask in decoded]

    def _in_pixels(self, position: int) -> tuple[Sequence[Box], tuple[int, int]]:
        """The boxes of an image as annotated, and width and height that they are for."""
        image, size = self.items[position], turn_size(self.size(position)[::-1], self.turn(position))
        return image.boxes if image.width else [box.scaled(*size) for box in image.boxes], size


def _within_a_pixel(corners: Sequence[float]) -> bool:
    left, top, right, bottom = corners
    return max(right - left, bottom - top) < 1 or max(right, bottom) <= 1


def check_classes(where: Path, names: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """The classes that labels count from 1: those that are known already, else the names that a file has.

    Raises:
        ValueError: the file has no names, two alike, or others than are known.
    """
    if not names:
        raise ValueError(f"{where}: it names no categories: at least one is needed")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: among its categories are two of one name: {first_few(twice)}. Rename one")
    unknown = sorted(set(names) - set(classes or names))
    if unknown:
        raise ValueError(
            f"{where}: its categories {first_few(unknown)} are not among the classes "
            f"{first_few(classes or names, count=10)}"
        )
    return list(classes or names)


def report_bad(where: Path, bad: Sequence[tuple[str, str]], bad_annotations: BadAnnotations) -> None:
    """Name annotations that are wrong and left out; see `BoxSplit.bad`.

    Raises:
        ValueError: they are to be rejected.
    """
    problems = [problem for _, problem in bad]
    advice = {problem.rpartition(": ")[2] for problem in problems}
    once = f": {advice.pop()}" if len(advice) == 1 and len(problems) > 1 else ""
    text = first_few([problem.removesuffix(once) for problem in problems], "; ") + once
    if problems and bad_annotations == "reject":
        raise ValueError(f"{where}: {text} (--bad-annotations skip leaves these out)")
    if problems:
        logger.warning(f"{where}: {len(problems)} annotations are left out: {text}")


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask, H W: {"size": [H, W], "counts": text}."""
    from faster_coco_eval.core import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """What COCO's polygons or run lengths cover: H W of 0 and 1."""
    from faster_coco_eval.core import mask

    decoded = mask.decode(mask.segmToRle(segmentation, width, height))
    return decoded.reshape(height, width)
