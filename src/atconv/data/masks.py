"""Pictures with a mask each that holds the class of every pixel, checked before anything is trained on them.

DATA/images/SIDE/x.jpg, or DATA/images/x.jpg     pictures
DATA/masks/SIDE/x.png, or DATA/masks/x.png       gray or palette PNG, class indices; 255 is left out
DATA/classes.txt                                 names, one a line, the first for index 0

SIDE is train, val or test; training, valid and validation will do.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rich.console import Console

from atconv.data.annotated import (
    choose_side,
    first_few,
    image_folder,
    picture_problem,
    raise_problems,
    sides_in,
)
from atconv.data.checking import in_threads
from atconv.data.images import Mode, images_in, read_image

__all__ = ["IGNORED", "MaskSplit", "open_masks", "read_mask"]

IGNORED = 255


@dataclass(frozen=True)
class MaskSplit:
    """The pictures and masks of one side."""

    folder: Path
    """of the pictures"""
    images: Sequence[Path]
    masks: Sequence[Path]
    classes: list[str]

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
        """H W of class indices, 255 where pixels are left out.

        Raises:
            ValueError: it cannot be read, or holds an index that is no class.
        """
        mask = read_mask(self.masks[position])
        values = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORED + 1)[:IGNORED])
        if values.size and values[-1] >= len(self.classes):
            told = ", ".join(map(str, values[values >= len(self.classes)][:5]))
            raise ValueError(
                f"{self.masks[position].name} holds {told}: classes.txt names 0 … {len(self.classes) - 1}, "
                f"and {IGNORED} is left out"
            )
        return mask

    def size(self, position: int) -> tuple[int, int]:
        with Image.open(self.masks[position]) as mask:  # reads the header
            return mask.height, mask.width

    def take(self, positions: Sequence[int]) -> MaskSplit:
        """Some of its pictures."""
        images, masks = [self.images[i] for i in positions], [self.masks[i] for i in positions]
        return replace(self, images=images, masks=masks)


def open_masks(
    data: str | Path,
    console: Console,
    check_images: Literal["decode", "header", "none"] = "decode",
    classes: list[str] | None = None,
    split: str | None = None,
) -> dict[str, MaskSplit]:
    """The sides of a folder by name; a lone "train" is all there is.

    Args:
        data: the folder.
        console: where progress shows.
        check_images: how files are checked: decode pictures and masks, read the headers of pictures
            (masks are decoded), or not at all.
        classes: the names that classes.txt must have.
        split: open one side alone, as `choose_side` names it; default: all.

    Raises:
        ValueError: no such folder or files, masks that are wrong (each is named), or training masks of one
            class alone.
    """
    data = Path(data)
    if not (data / "images").is_dir() or not (data / "masks").is_dir():
        raise ValueError(
            f"{data} does not exist or has no masks: give a folder with images/, masks/ and classes.txt"
        )
    found = _read_classes(data / "classes.txt")
    if classes is not None and found != classes:
        told, wanted = ", ".join(found[:10]), ", ".join(classes[:10])
        raise ValueError(f"{data / 'classes.txt'} names {told} and not {wanted} as the run does")
    names = sides_in(data / "images") or ["train"]
    if split is not None:
        names = [choose_side(names, split, data)]
    sides = {side: _open_side(data, side, found) for side in names}
    if check_images != "none":
        for name, side in sides.items():
            folder = image_folder(data, name, "masks")
            occurring = _check_side(side, folder, check_images, console)
            if name == "train" and split is None:
                _check_classes(found, occurring, folder, console)
    return sides


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
        raise ValueError(f"{path}: not in a picture format") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error


def _read_classes(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except OSError:
        raise ValueError(
            f"{path} is not there: write the name of a class on each line, the first for index 0"
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


def _open_side(data: Path, side: str, classes: list[str]) -> MaskSplit:
    images, masks = (image_folder(data, side, kind) for kind in ("images", "masks"))
    pictures = [path.relative_to(images) for path in images_in(images)]
    if not pictures:
        raise ValueError(f"no pictures in {images}")
    stems = [path.with_suffix("") for path in pictures]
    wanted = [masks / stem.with_name(f"{stem.name}.png") for stem in stems]
    problems = [
        f"{picture} has no mask {mask}: add it, or remove the picture"
        for picture, mask in zip(pictures, wanted, strict=True)
        if not mask.is_file()
    ]
    problems += [
        f"{stem} names two pictures: rename one" for stem, counted in Counter(stems).items() if counted > 1
    ]
    raise_problems(images, problems)
    return MaskSplit(images, [images / path for path in pictures], wanted, classes)


def _check_side(side: MaskSplit, folder: Path, how: str, console: Console) -> set[int]:
    """The classes that occur in its masks."""
    occurring: list[set[int]] = [set()] * len(side)

    def problem(position: int) -> str | None:
        """What is wrong with a picture or its mask."""
        try:
            mask = side.mask(position)
        except ValueError as error:
            return str(error)
        occurring[position] = {*np.flatnonzero(np.bincount(mask.ravel())).tolist()} - {IGNORED}
        return picture_problem(side.images[position], how, mask.shape[::-1])

    results = in_threads(problem, len(side), console, "checking masks")
    raise_problems(folder, [wrong for wrong in results if wrong is not None])
    if not any(occurring):
        raise ValueError(f"{folder}: every pixel is {IGNORED}, which is left out: no class is labeled")
    return set().union(*occurring)


def _check_classes(classes: list[str], occurring: set[int], folder: Path, console: Console) -> None:
    """Whether there is something to learn from these training masks."""
    if len(occurring) == 1:
        only = next(iter(occurring))
        raise ValueError(
            f"{folder}: every labeled pixel is {only}, {classes[only]}: there is nothing to tell apart. "
            f"{IGNORED} is left out; where it stands for a class, write that class's index instead"
        )
    absent = [name for index, name in enumerate(classes) if index not in occurring]
    if absent:
        console.print(f"no mask in {folder} holds {first_few(absent)}", soft_wrap=True)
