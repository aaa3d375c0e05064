"""What formats of annotated images share: images by position, and their check before training."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from PIL import Image

from atconv.data.arrays import SharedIntegers, SharedItems, SharedNames
from atconv.data.images import Mode, opened_image, read_image, stored_geometry, upright
from atconv.data.listing import is_ignored, scan
from atconv.data.orientation import Exif, annotation_turn, turn_size
from atconv.data.unreadable import (
    CheckImages,
    content_digest,
    hex_digest,
    in_threads,
)
from atconv.io import count_of, first_few, read_bytes

__all__ = [
    "AnnotatedSplit",
    "batches_of_equal_size",
    "check_split",
    "log_tool_folders",
    "raise_problems",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Inspection:
    """What an image and its annotations are found to be."""

    unusable: str | None = None
    """why the image is left out"""
    wrong: str | None = None
    """what is wrong with its annotations"""
    annotated: tuple[int, int] | None = None
    """width and height that annotations are for, where they say"""
    stored: tuple[int, int] = (0, 0)
    """width and height of the image as stored"""
    orientation: int = 1
    labels: tuple[int, ...] = ()
    """that occur"""
    digest: str = ""
    """of the file"""


@dataclass(frozen=True, kw_only=True)
class AnnotatedSplit(ABC):
    """Annotated images, by position. Processes share what it holds."""

    where: Path
    """the file or folder of annotations, for messages"""
    folder: Path
    """of the images"""
    classes: list[str]
    items: SharedItems[Any]
    """the name and the annotations of each image"""
    geometry: SharedIntegers = field(default_factory=lambda: SharedIntegers(np.zeros((0, 3))))
    """of each image: the orientation by which its annotations are turned upright, its height, its width"""
    digests: SharedNames = field(default_factory=lambda: SharedNames([]))
    """of the files, "" where they were not checked"""
    skipped: Sequence[tuple[str, str]] = ()
    """images that were left out, and why"""
    trained_on: int = 0
    """how many of the images a run was trained on"""
    checkable: ClassVar[bool] = True
    """images are encoded files that may be unreadable"""

    @staticmethod
    @abstractmethod
    def name_of(item: Any) -> str:
        """The name of an image, relative to the folder of images."""

    @abstractmethod
    def annotations(
        self, position: int, check: bool
    ) -> tuple[tuple[int, int] | None, Sequence[int], str | None]:
        """Width and height that annotations are for (None: they do not say), the labels that occur, and what
        is wrong with them.

        Raises:
            ValueError: they cannot be read, so that the image is left out.
        """

    @property
    @abstractmethod
    def digest(self) -> str:
        """Differs where the annotations differ."""

    def describe(self, position: int, problem: str) -> str:
        """A problem with an image, under the name that the annotations have for it."""
        return problem

    def has_objects(self, position: int) -> bool:
        """Whether there is something to learn in an image."""
        return True

    def check_labels(self, labels: set[int], training: bool) -> None:  # noqa: B027  (there may be no rule)
        """Raise ValueError where the labels that occur cannot be trained on."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        return [self.name_of(item) for item in self.items]

    def path(self, position: int) -> Path:
        return self.folder / self.name(position)

    def name(self, position: int) -> str:
        return self.name_of(self.items[position])

    def encoded(self, position: int) -> bytes:
        """The bytes of the image's file."""
        return read_bytes(self.path(position))

    def read(self, position: int, mode: Mode) -> Image.Image:
        return read_image(self.path(position), mode)

    def turn(self, position: int) -> int:
        """The EXIF orientation by which annotations are turned upright."""
        return int(self.geometry.array[position, 0])

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of an image, upright."""
        height, width = self.geometry.array[position, 1:].tolist()
        return height, width

    def take(self: S, positions: Sequence[int]) -> S:
        """Some of its images."""
        items = type(self.items)(self.items[i] for i in positions)
        geometry = self.geometry.array[list(positions)] if len(self.geometry.array) else self.geometry.array
        digests = SharedNames(self.digests[i] for i in positions) if len(self.digests) else self.digests
        return replace(self, items=items, geometry=SharedIntegers(geometry), digests=digests)


S = TypeVar("S", bound=AnnotatedSplit)


def check_split(split: S, check: CheckImages, exif: Exif | None, skip: bool, training: bool) -> S:
    """A split whose images can be used, with annotations that lie on upright images. Opens each image once.

    Args:
        check: how files are checked: decode each, read its header, or not at all.
        exif: what annotations of images with an EXIF orientation belong to; default: as sizes tell.
        skip: leave out images that cannot be used, and list them in `skipped`, instead of raising ValueError.
        training: it is trained on.

    Raises:
        ValueError: images or annotations are wrong; each is named.
    """
    results = list(in_threads(partial(_inspect, split, check, exif), len(split), "checking images"))
    unusable = [(i, split.describe(i, r.unusable)) for i, r in enumerate(results) if r.unusable is not None]
    if not skip or len(unusable) == len(split):
        raise_problems(split.where, [reason for _, reason in unusable])
    if unusable:
        names = split.names
        usable = [i for i, result in enumerate(results) if result.unusable is None]
        skipped = [(names[i], reason) for i, reason in unusable]
        split, results = replace(split.take(usable), skipped=skipped), [results[i] for i in usable]
    split = replace(
        split,
        geometry=SharedIntegers(_geometry(split, results, exif)),
        digests=SharedNames(result.digest for result in results),
    )
    if check != "none":
        problems = [(i, r.wrong or _size_problem(split, i, r)) for i, r in enumerate(results)]
        raise_problems(split.where, [split.describe(i, text) for i, text in problems if text is not None])
        split.check_labels({label for result in results for label in result.labels}, training)
    return split


def _inspect(split: AnnotatedSplit, check: CheckImages, exif: Exif | None, position: int) -> _Inspection:
    path = split.path(position)
    if not path.exists():
        return _Inspection(f"{path} does not exist: put it back, or remove its entry")
    try:
        annotated, labels, wrong = split.annotations(position, check != "none")
    except ValueError as error:
        return _Inspection(str(error))
    unknown = _Inspection(None, wrong, annotated, annotated or (0, 0), 1, tuple(labels))
    trusted = check == "none" and annotated is not None
    if trusted and exif == "upright":
        return unknown
    try:
        with opened_image(path) as image:
            stored, orientation = stored_geometry(image)
            if check == "decode":
                upright(image, "L")
        digest = "" if check == "none" else hex_digest(content_digest(path.read_bytes()))
    except (OSError, ValueError) as error:
        return unknown if trusted else _Inspection(str(error))
    return replace(unknown, stored=stored, orientation=orientation, digest=digest)


def _geometry(split: AnnotatedSplit, results: Sequence[_Inspection], exif: Exif | None) -> list[list[int]]:
    """For each image the orientation by which annotations are turned, and its height and width then."""
    rows, unclear = [], []
    for i, result in enumerate(results):
        turn = annotation_turn(result.annotated, result.stored, result.orientation, exif)
        if turn is None:
            unclear.append(f"{split.path(i).name} ({result.orientation})")
        if result.annotated is None:
            width, height = turn_size(result.stored, result.orientation)
        else:
            width, height = turn_size(result.annotated, turn or 1)
        rows.append([turn or 1, height, width])
    if unclear:
        raise ValueError(
            f"{split.where}: {count_of(len(unclear), 'image carries', 'images carry')} an EXIF orientation, "
            "and annotations may belong to the pixels as stored or to the image turned upright: "
            f"{first_few(unclear)}. Look at one and give --exif stored or --exif upright"
        )
    turns = [row[0] for row, result in zip(rows, results, strict=True) if result.orientation != 1]
    if turns:
        turned = sum(turn != 1 for turn in turns)
        logger.info(
            "%s: %s an EXIF orientation; annotations are taken to lie on the stored pixels of %d, and on the "
            "upright image of %d (%s)",
            *(split.where, count_of(len(turns), "image carries", "images carry"), turned),
            *(len(turns) - turned, "as sizes tell" if exif is None else f"--exif {exif}"),
        )
    return rows


def _size_problem(split: AnnotatedSplit, position: int, result: _Inspection) -> str | None:
    """Whether an image has another size, upright, than its annotations are for."""
    width, height = turn_size(result.stored, result.orientation)
    if (height, width) == split.size(position):
        return None
    expected = " × ".join(map(str, split.size(position)[::-1]))
    path = split.path(position)
    return f"{path} is {width} × {height} pixels and not {expected} as its mask or annotation says"


def log_tool_folders(data: Path, split: AnnotatedSplit, looked_at: set[Path]) -> None:
    """Name what tools have left in the folders of a split, but for those that were looked at."""
    near = [split.path(0).parent] if len(split) else []
    for folder in {path for path in (data, split.where, split.folder, *near) if path.is_dir()} - looked_at:
        looked_at.add(folder)
        if tools := [entry.name for entry in scan(folder) if is_ignored(entry.name) and entry.is_dir()]:
            logger.warning("passed over in %s: %s", folder, first_few(tools))


def raise_problems(where: Path, problems: Sequence[str]) -> None:
    """Raise ValueError that names the first few problems, if there are any. What follows a colon in all of
    them is said once."""
    if not problems:
        return
    parts = [problem.partition(": ") for problem in problems]
    advice = {tail for _, _, tail in parts}
    if len(problems) > 1 and len(advice) == 1 and "" not in advice:
        raise ValueError(f"{where}: {first_few([head for head, _, _ in parts], '; ')}: {advice.pop()}")
    raise ValueError(f"{where}: {first_few(problems, '; ')}")


def batches_of_equal_size(
    split: AnnotatedSplit, positions: Sequence[int], batch_size: int
) -> list[list[int]]:
    """Positions in batches of images of one size: padding an image to another's size would change what is
    detected in it, and metrics would depend on the batch."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position in positions:
        groups[split.size(position)].append(position)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]
