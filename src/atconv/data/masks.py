"""Images with a mask each that holds the class of every pixel, checked before anything is trained on them.

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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from atconv.data.annotated import (
    CheckImages,
    choose_splits,
    first_few,
    image_folder,
    image_problem,
    leave_out,
    raise_problems,
    size_problem,
    splits_in,
)
from atconv.data.checking import in_threads
from atconv.data.images import Mode, images_in, read_image
from atconv.data.orientation import Exif, annotation_turns, turn_mask, turn_size

__all__ = ["IGNORED", "MaskSplit", "mask_splits", "open_masks", "read_mask"]

logger = logging.getLogger(__name__)

IGNORED = 255


@dataclass(frozen=True)
class MaskSplit:
    """The images and masks of one split."""

    folder: Path
    """of the images"""
    images: Sequence[Path]
    masks: Sequence[Path]
    classes: list[str]
    values: tuple[int, ...] | None = None
    """what masks hold for each class; None: its index"""
    turns: Sequence[int] = ()
    """EXIF orientation by which each mask is turned upright; empty: none is"""
    skipped: Sequence[tuple[str, str]] = ()
    """images that were left out, and why"""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        return [image.relative_to(self.folder).as_posix() for image in self.images]

    @property
    def digest(self) -> str:
        """Of the masks' sizes in bytes: reading all of them takes long, and few changes keep a PNG's size."""
        sizes = [(path.name, path.stat().st_size) for path in self.masks]
        return hashlib.sha256(repr((self.classes, sizes)).encode()).hexdigest()

    def read(self, position: int, mode: Mode) -> Image.Image:
        return read_image(self.images[position], mode)

    def mask(self, position: int) -> NDArray[np.uint8]:
        """H W of class indices, 255 where pixels are ignored.

        Raises:
            ValueError: it cannot be read, or holds an index that is no class.
        """
        mask = read_mask(self.masks[position])
        known = list(range(len(self.classes))) if self.values is None else list(self.values)
        unknown = sorted({*np.unique(mask).tolist()} - {*known, IGNORED})
        if unknown:
            names = (
                f"classes.txt names 0 … {len(known) - 1}" if self.values is None else f"classes are {known}"
            )
            raise ValueError(
                f"{self.masks[position].name} holds {', '.join(map(str, unknown[:5]))}: {names}, and "
                f"{IGNORED} is ignored. Where masks hold other values for the classes, list them in their "
                "order, such as --mask-values '[0, 255]'"
            )
        table = np.full(IGNORED + 1, IGNORED, np.uint8)
        table[known] = range(len(known))
        return turn_mask(table[mask], self._turn(position))

    def size(self, position: int) -> tuple[int, int]:
        with Image.open(self.masks[position]) as mask:  # reads the header
            width, height = turn_size(mask.size, self._turn(position))
        return height, width

    def _turn(self, position: int) -> int:
        return self.turns[position] if self.turns else 1

    def take(self, positions: Sequence[int]) -> MaskSplit:
        """Some of its images."""
        images, masks = [self.images[i] for i in positions], [self.masks[i] for i in positions]
        turns = [self.turns[i] for i in positions] if self.turns else ()
        return replace(self, images=images, masks=masks, turns=turns)


def open_masks(
    data: str | Path,
    check_images: CheckImages = "decode",
    classes: list[str] | None = None,
    split: str | None = None,
    values: Sequence[int] | None = None,
    exif: Exif | None = None,
    skip_unreadable: bool = False,
) -> dict[str, MaskSplit]:
    """The splits of a folder by name; a lone "train" is all there is.

    Args:
        data: the folder.
        check_images: how files are checked: decode images and masks, read the headers of images (masks are
            decoded), or not at all.
        classes: the names that classes.txt must have.
        split: open this split alone, as `choose_split` names it; default: all.
        values: what masks hold for each class; default: its index.
        exif: what masks of images with an EXIF orientation belong to; default: as sizes tell.
        skip_unreadable: leave out images that cannot be read; the split's `skipped` lists them.

    Raises:
        ValueError: no such folder or files, masks that are wrong (each is named), or training masks of only
            one class.
    """
    data = Path(data)
    if not (data / "images").is_dir() or not (data / "masks").is_dir():
        raise ValueError(
            f"{data} does not exist or has no masks: give a folder with images/, masks/ and classes.txt"
        )
    own = _read_classes(data / "classes.txt")
    if classes is not None and own != classes:
        raise ValueError(
            f"{data / 'classes.txt'} names {', '.join(own[:10])} and not {', '.join(classes[:10])} as the "
            "run does"
        )
    if values is not None and len(values) != len(own):
        raise ValueError(
            f"mask_values are {len(values)}, and {data / 'classes.txt'} names {len(own)} classes: give one "
            "for each"
        )
    splits = {}
    for name in choose_splits(mask_splits(data), split, data):
        opened, folder = _open_split(data, name, own), image_folder(data, name, "masks")
        if check_images != "none":
            opened = _leave_out_unreadable(opened, folder, check_images, skip_unreadable)
        opened = replace(opened, values=None if values is None else tuple(values))
        splits[name] = opened = _turn_upright(opened, exif)
        if check_images != "none":
            occurring = _check_split(opened, folder)
            if name == "train" and split is None:
                _check_classes(own, occurring, folder)
    return splits


def mask_splits(data: str | Path) -> list[str]:
    """The splits that have a folder of their own, or a lone "train"."""
    return splits_in(Path(data) / "images") or ["train"]


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The class indices of a mask file, H W.

    Raises:
        ValueError: it is unreadable, or has colors instead of indices.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P"):
                raise ValueError(
                    f"{path} has the mode {image.mode}: a mask is a gray or palette PNG of class indices"
                )
            return np.array(image).astype(np.uint8)
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not in an image format") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def _indices(mask: NDArray[np.uint8]) -> list[int]:
    """The class indices that occur in a mask."""
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORED + 1)[:IGNORED]).tolist()


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


def _open_split(data: Path, split: str, classes: list[str]) -> MaskSplit:
    folder, masks = (image_folder(data, split, kind) for kind in ("images", "masks"))
    images = [path.relative_to(folder) for path in images_in(folder)]
    if not images:
        raise ValueError(f"no images in {folder}")
    stems = [path.with_suffix("") for path in images]
    expected = [masks / stem.with_name(f"{stem.name}.png") for stem in stems]
    problems = [
        f"{image} has no mask {mask}: add it, or remove the image"
        for image, mask in zip(images, expected, strict=True)
        if not mask.is_file()
    ]
    problems += [f"{stem} names two images: rename one" for stem, n in Counter(stems).items() if n > 1]
    raise_problems(folder, problems)
    return MaskSplit(folder, [folder / path for path in images], expected, classes)


def _leave_out_unreadable(split: MaskSplit, folder: Path, check: CheckImages, skip: bool) -> MaskSplit:
    def problem(position: int) -> str | None:
        try:
            read_mask(split.masks[position])
        except ValueError as error:
            return str(error)
        return image_problem(split.images[position], check)

    return leave_out(split, list(in_threads(problem, len(split), "checking masks")), folder, skip)


def _turn_upright(split: MaskSplit, exif: Exif | None) -> MaskSplit:
    sizes = []
    for path in split.masks if exif != "upright" else ():
        with Image.open(path) as mask:
            sizes.append(mask.size)
    turns = annotation_turns(split.images, sizes, exif)
    return replace(split, turns=turns)


def _check_split(split: MaskSplit, folder: Path) -> set[int]:
    """The classes that occur in its masks."""
    occurring: list[list[int]] = [[]] * len(split)

    def problem(position: int) -> str | None:
        """What is wrong with a mask."""
        try:
            mask = split.mask(position)
        except ValueError as error:
            return str(error)
        occurring[position] = _indices(mask)
        height, width = mask.shape
        return size_problem(split.images[position], (width, height))

    results = in_threads(problem, len(split), "checking labels")
    raise_problems(folder, [reason for reason in results if reason is not None])
    if not any(occurring):
        raise ValueError(f"{folder}: every pixel is {IGNORED}, which is ignored: no class is labeled")
    return set().union(*occurring)


def _check_classes(classes: list[str], occurring: set[int], folder: Path) -> None:
    """Whether there is something to learn from these training masks."""
    if len(occurring) == 1:
        only = next(iter(occurring))
        raise ValueError(
            f"{folder}: every labeled pixel is {only}, {classes[only]}: there is nothing to tell apart. "
            f"{IGNORED} is ignored; where it stands for a class, say so, such as --mask-values '[0, 255]', "
            "or write that class's index instead"
        )
    absent = [name for index, name in enumerate(classes) if index not in occurring]
    if absent:
        logger.warning(f"no mask in {folder} holds {first_few(absent)}")
