"""Images with a mask each that holds the class of every pixel, such as DATA/images/SPLIT/x.jpg and
DATA/masks/SPLIT/x.png, and a table of the classes, such as DATA/classes.txt."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atconv.data.annotated import AnnotatedSplit
from atconv.data.arrays import SharedItems
from atconv.data.config import MaskOptions
from atconv.data.images import opened_image
from atconv.data.listing import images_in
from atconv.data.masks.classes import (
    IGNORED,
    MaskClasses,
    find_table,
    is_jpeg,
    missing_table,
    read_classes,
    read_mask,
)
from atconv.data.masks.layouts import MaskLayout, find_masks
from atconv.data.masks.pairs import MaskFolders
from atconv.data.orientation import turn_mask
from atconv.io import count_of, first_few

__all__ = ["IGNORED", "MaskSplit", "mask_splits", "read_mask_folder"]

logger = logging.getLogger(__name__)

_LOOKED_AT = 16  # masks, to say what they hold


@dataclass(frozen=True, kw_only=True)
class MaskSplit(AnnotatedSplit):
    """The images and masks of one split. `items` are the names of an image and its mask, "" where one is
    missing; `where` is the folder of masks."""

    codes: MaskClasses
    """what masks hold for each class"""

    @staticmethod
    def name_of(item: tuple[str, str]) -> str:
        return item[0] or item[1]

    def describe(self, position: int, problem: str) -> str:
        image, mask = self.items[position]
        if image:
            return problem
        return f"{self.where / mask} has no image in {self.folder}: add it, or remove the mask"

    def annotations(self, position: int, check: bool) -> tuple[tuple[int, int], Sequence[int], str | None]:
        path = self.mask_path(position)
        if not self.items[position][1]:
            raise ValueError(
                f"{self.path(position)} has no mask in {self.where}: add it, or remove the image"
            )
        if not check:
            with opened_image(path) as mask:
                return mask.size, (), None
        pixels = read_mask(path, self.codes.colored)
        size = (pixels.shape[1], pixels.shape[0])
        try:
            labels = np.unique(self.codes.indices(pixels, path)).tolist()
        except ValueError as error:
            return size, (), str(error)
        return size, [label for label in labels if label != IGNORED], None

    def check_labels(self, labels: set[int], training: bool) -> None:
        ignored = self.codes.describe(self.codes.ignored)
        if not labels:
            raise ValueError(f"{self.where}: every pixel is {ignored}, which is ignored: no class is labeled")
        if not training:
            return
        if len(labels) == 1:
            only = next(iter(labels))
            held = self.codes.describe([self.codes.codes[only]])
            raise ValueError(
                f"{self.where}: every labeled pixel is {held}, {self.classes[only]}: there is nothing to "
                f"tell apart. {ignored} is ignored; where it stands for a class, say so, such as "
                "--mask-values '[0, 255]', or write that class's index instead"
            )
        absent = [name for index, name in enumerate(self.classes) if index not in labels]
        if absent:
            logger.warning(f"no mask in {self.where} holds {first_few(absent)}")

    @property
    def digest(self) -> str:
        """Of the masks' sizes in bytes: reading all of them takes long, and few changes keep a PNG's size."""
        paths = map(self.mask_path, range(len(self)))
        sizes = [(path.name, path.stat().st_size) for path in paths]
        codes = (self.codes.names, self.codes.codes, self.codes.ignored)
        return hashlib.sha256(repr((codes, sizes)).encode()).hexdigest()

    def mask_path(self, position: int) -> Path:
        return self.where / self.items[position][1]

    def mask(self, position: int) -> NDArray[np.uint8]:
        """H W of class indices, 255 where pixels are ignored.

        Raises:
            ValueError: it cannot be read, or holds an index that is no class.
        """
        return turn_mask(self.codes.read(self.mask_path(position)), self.turn(position))


def mask_splits(data: Path, images: Path | None, options: MaskOptions) -> list[str]:
    """The splits that have a folder of their own, or a lone "train"; none where there are no masks."""
    return list(_layout(data, images, options).splits)


def read_mask_folder(
    data: Path, split: str, classes: Sequence[str] | None, images: Path | None, options: MaskOptions
) -> MaskSplit:
    """A split.

    Args:
        classes: the names that the table of classes must have.
        images: the folder of images; default: found in DATA.

    Raises:
        ValueError: two images share a mask, or the table of classes is missing or wrong.
    """
    layout = _layout(data, images, options)
    found = layout.splits[split]
    codes = _classes(data, found, options)
    if classes is None:
        _report(layout, found)
    elif codes.names != list(classes):
        names, known = ", ".join(codes.names[:10]), ", ".join(classes[:10])
        raise ValueError(f"{codes.table} names {names} and not {known} as the run does")
    return MaskSplit(
        where=found.masks,
        folder=found.images,
        classes=codes.names,
        items=SharedItems(found.pairs),
        codes=codes,
    )


def _layout(data: Path, images: Path | None, options: MaskOptions) -> MaskLayout:
    return find_masks(data, images, options.masks, options.mask_names)


def _classes(data: Path, found: MaskFolders, options: MaskOptions) -> MaskClasses:
    """The classes that the table in DATA, or next to its folders of masks, names."""
    if options.class_table is not None:
        return read_classes(Path(options.class_table), options)
    table = find_table([data, found.masks.parent, found.masks])
    if table is None:
        masks = [found.masks / mask for _, mask in found.pairs if mask][:_LOOKED_AT]
        raise ValueError(missing_table(data / "classes.txt", masks))
    return read_classes(table, options)


def _report(layout: MaskLayout, found: MaskFolders) -> None:
    """Say where masks were found, and which images are without."""
    image, mask = next((pair for pair in found.pairs if all(pair)), found.pairs[0])
    logger.info("the mask of %s is %s", found.images / image, found.masks / mask)
    if layout.unused:
        names = [f"{folder} ({count_of(len(images_in(folder)), 'image')})" for folder in layout.unused]
        logger.warning("not used, folders of images without masks: %s", first_few(names))
    if is_jpeg(Path(mask)):
        logger.warning("masks are JPEG files, which changes values: save them as PNG where you can")
