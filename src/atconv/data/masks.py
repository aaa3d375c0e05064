"""Images with a mask each that holds the class of every pixel.

DATA/images/SPLIT/x.jpg, or DATA/images/x.jpg    images
DATA/masks/SPLIT/x.png, or DATA/masks/x.png      gray or palette PNG, class indices; 255 is ignored
DATA/classes.txt                                 names, one on each line, the first for index 0

SPLIT is train, val or test, or training, valid or validation.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from atconv.data.annotated import AnnotatedSplit, raise_problems
from atconv.data.arrays import SharedNames
from atconv.data.folders import split_folder, split_folders
from atconv.data.images import list_images, opened_image
from atconv.data.orientation import turn_mask
from atconv.io import first_few

__all__ = ["IGNORED", "MaskSplit", "is_masks", "mask_splits", "read_mask", "read_mask_folder"]

logger = logging.getLogger(__name__)

IGNORED = 255


@dataclass(frozen=True, kw_only=True)
class MaskSplit(AnnotatedSplit):
    """The images and masks of one split. `items` are names of images; `where` is the folder of masks."""

    values: tuple[int, ...] | None = None
    """what masks hold for each class; None: its index"""

    @staticmethod
    def name_of(item: str) -> str:
        return item

    def annotations(self, position: int, check: bool) -> tuple[tuple[int, int], Sequence[int], str | None]:
        path = self.mask_path(position)
        if not path.is_file():
            raise ValueError(f"{self.path(position)} has no mask {path}: add it, or remove the image")
        if not check:
            with opened_image(path) as mask:
                return mask.size, (), None
        indices = read_mask(path)
        try:
            labels = np.unique(self._labels(indices, path)).tolist()
        except ValueError as error:
            return indices.shape[::-1], (), str(error)
        return indices.shape[::-1], [label for label in labels if label != IGNORED], None

    def check_labels(self, labels: set[int], training: bool) -> None:
        if not labels:
            raise ValueError(f"{self.where}: every pixel is {IGNORED}, which is ignored: no class is labeled")
        if not training:
            return
        if len(labels) == 1:
            only = next(iter(labels))
            raise ValueError(
                f"{self.where}: every labeled pixel is {only}, {self.classes[only]}: there is nothing to "
                f"tell apart. {IGNORED} is ignored; where it stands for a class, say so, such as "
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
        return hashlib.sha256(repr((self.classes, sizes)).encode()).hexdigest()

    def mask_path(self, position: int) -> Path:
        return self.where / PurePosixPath(self.items[position]).with_suffix(".png")

    def mask(self, position: int) -> NDArray[np.uint8]:
        """H W of class indices, 255 where pixels are ignored.

        Raises:
            ValueError: it cannot be read, or holds an index that is no class.
        """
        path = self.mask_path(position)
        return turn_mask(self._labels(read_mask(path), path), self.turn(position))

    def _labels(self, mask: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
        """Class indices for what a mask holds."""
        known = list(self.values or range(len(self.classes)))
        unknown = sorted({*np.unique(mask).tolist()} - {*known, IGNORED})
        if unknown:
            names = (
                f"classes.txt names 0 … {len(known) - 1}" if self.values is None else f"classes are {known}"
            )
            raise ValueError(
                f"{path.name} holds {first_few(list(map(str, unknown)))}: {names}, and {IGNORED} is ignored. "
                "Where masks hold other values for the classes, list them in their order, such as "
                "--mask-values '[0, 255]'"
            )
        table = np.full(IGNORED + 1, IGNORED, np.uint8)
        table[known] = range(len(known))
        return table[mask]


def is_masks(path: Path) -> bool:
    """Whether a folder holds images and masks."""
    return (path / "images").is_dir() and (path / "masks").is_dir()


def mask_splits(data: Path, images: Path | None) -> list[str]:
    """The splits that have a folder of their own, or a lone "train"; none where there are no masks."""
    images = images or data / "images"
    if not images.is_dir() or not (data / "masks").is_dir():
        return []
    return list(split_folders(images)) or ["train"]


def read_mask_folder(
    data: Path,
    split: str,
    classes: Sequence[str] | None,
    images: Path | None,
    values: Sequence[int] | None,
) -> MaskSplit:
    """A split.

    Args:
        classes: the names that classes.txt must have.
        images: the folder of images; default: DATA/images.
        values: what masks hold for each class; default: its index.

    Raises:
        ValueError: there are no images, two share a mask, or classes.txt is wrong.
    """
    own = _read_classes(data / "classes.txt")
    if classes is not None and own != list(classes):
        raise ValueError(
            f"{data / 'classes.txt'} names {', '.join(own[:10])} and not {', '.join(classes[:10])} as the "
            "run does"
        )
    if values is not None and len(values) != len(own):
        raise ValueError(
            f"mask_values are {len(values)}, and {data / 'classes.txt'} names {len(own)} classes: give one "
            "for each"
        )
    folder = split_folder(images or data / "images", split)
    names = list_images(folder).images
    if not names:
        raise ValueError(f"no images in {folder}")
    stems = Counter(PurePosixPath(name).with_suffix("") for name in names)
    raise_problems(folder, [f"{stem} names two images: rename one" for stem, n in stems.items() if n > 1])
    return MaskSplit(
        where=split_folder(data / "masks", split),
        folder=folder,
        classes=own,
        items=SharedNames(names),
        values=None if values is None else tuple(values),
    )


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The class indices of a mask file, H W.

    Raises:
        ValueError: it is unreadable, or has colors instead of indices.
    """
    with opened_image(path) as image:
        mode, mask = image.mode, np.array(image)
    if mode not in ("1", "L", "P"):
        raise ValueError(f"{path} has the mode {mode}: a mask is a gray or palette PNG of class indices")
    return mask.astype(np.uint8)


def _read_classes(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except OSError:
        raise ValueError(
            f"{path} does not exist: write the name of a class on each line, the first for index 0"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it as such") from None
    if "" in names:
        raise ValueError(
            f"line {1 + names.index('')} of {path} is blank, and each line stands for an index: name it, or "
            "remove it if no mask holds its index"
        )
    if len(names) < 2 or len(set(names)) < len(names) or len(names) > IGNORED:
        raise ValueError(
            f"{path} must have 2 … {IGNORED} names, no two alike; it has {', '.join(names[:10]) or 'none'}"
        )
    return names
