"""What annotated folders share: where the images of a split are, what is wrong with a file, the splits."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from PIL import Image
from typing_extensions import Self

from atconv.data.checking import TooManyUnreadable
from atconv.data.folders import SPLIT_NAMES, SPLITS, split_of, subfolders
from atconv.data.images import Mode, image_suffixes, images_in, is_ignored, read_image
from atconv.data.splits import choose_split
from atconv.engine.rng import derive_seed
from atconv.io import write_json, write_rows

__all__ = [
    "AnnotatedSplit",
    "CheckImages",
    "batches_of_equal_size",
    "check_skipped",
    "choose_splits",
    "first_few",
    "image_folder",
    "image_problem",
    "leave_out",
    "raise_problems",
    "read_saved_split",
    "save_or_check_split",
    "size_problem",
    "splits_in",
    "train_val_test_split",
]

logger = logging.getLogger(__name__)

CheckImages = Literal["decode", "header", "none"]
_SHOWN = 5  # problems that are named; the others are counted


class AnnotatedSplit(Protocol):
    """Images of one split, by position."""

    @property
    def classes(self) -> list[str]: ...

    @property
    def names(self) -> list[str]: ...

    @property
    def digest(self) -> str:
        """Differs where the annotations differ."""
        ...

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """Images that were left out, and why."""
        ...

    def __len__(self) -> int: ...

    def read(self, position: int, mode: Mode) -> Image.Image: ...

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of an image, upright."""
        ...

    def take(self, positions: Sequence[int]) -> Self: ...


S = TypeVar("S", bound=AnnotatedSplit)


def image_folder(data: Path, split: str, kind: str = "images") -> Path:
    """DATA/images/SPLIT where it exists, under any of its names, else DATA/images."""
    return next(iter(_folders_of(data / kind, split)), data / kind)


def splits_in(folder: Path) -> list[str]:
    """The splits that have a folder of their own in a folder of images.

    Raises:
        ValueError: a split has two, or the folder holds other images, which would be ignored.
    """
    folders = {split: _folders_of(folder, split) for split in SPLITS}
    for split, paths in folders.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise ValueError(f"{folder} has {names}, two folders for {split}: leave one")
    own = [path for paths in folders.values() for path in paths]
    unknown = [path.name for path in sorted(folder.iterdir()) if path not in own and _holds_images(path)]
    if own and unknown:
        accepted = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
        raise ValueError(
            f"{folder} holds {first_few(unknown)} next to {', '.join(path.name for path in own)}: move it "
            f"into one of them, or out; splits are called {accepted}"
        )
    return [split for split, paths in folders.items() if paths]


def _folders_of(folder: Path, split: str) -> list[Path]:
    return [path for path in subfolders(folder) if split_of(path.name) == split] if folder.is_dir() else []


def _holds_images(path: Path) -> bool:
    if is_ignored(path.name):
        return False
    return bool(images_in(path)) if path.is_dir() else path.suffix.lower() in image_suffixes()


def image_problem(path: Path, check: CheckImages) -> str | None:
    """Why an image file cannot be read, or None.

    Args:
        check: "decode" reads it in full, "header" its header, "none" only tests that it exists.
    """
    if not path.is_file():
        return f"{path} does not exist: put it back, or remove its entry"
    try:
        if check == "decode":
            read_image(path, "L")
        elif check == "header":
            with Image.open(path):
                pass
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).partition("\n")[0]
        return reason if str(path) in reason else f"{path}: not a readable image ({reason})"
    return None


def size_problem(path: Path, size: tuple[int, int]) -> str | None:
    """Whether a readable image has another width and height, upright, than its annotations are for."""
    with Image.open(path) as image:
        rotated = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation: width and height swap
        actual = image.size[::-1] if rotated else image.size
    if actual == size:
        return None
    expected = f"{size[0]} × {size[1]}"
    return f"{path} is {actual[0]} × {actual[1]} pixels and not {expected} as its mask or annotation says"


def leave_out(split: S, reasons: Sequence[str | None], where: Path, skip: bool) -> S:
    """The split without images that cannot be used.

    Args:
        reasons: why an image cannot be used, by position, or None.
        where: the split's file or folder, for messages.
        skip: leave them out, and list them in the split's `skipped`, instead of raising ValueError.
    """
    if not skip:
        raise_problems(where, [reason for reason in reasons if reason is not None])
    skipped = [
        (name, reason) for name, reason in zip(split.names, reasons, strict=True) if reason is not None
    ]
    if not skipped:
        return split
    kept: Any = split.take([i for i, reason in enumerate(reasons) if reason is None])
    if not len(kept):
        raise ValueError(f"{where}: no image can be read: {first_few([reason for _, reason in skipped])}")
    return replace(kept, skipped=skipped)


def check_skipped(splits: Mapping[str, AnnotatedSplit], limit: float, path: Path) -> None:
    """Write images that were left out to a table.

    Raises:
        TooManyUnreadable: they are more than a share of all images.
    """
    rows = [
        {"split": name, "file": file, "reason": reason}
        for name, split in splits.items()
        for file, reason in split.skipped
    ]
    if not rows:
        return
    write_rows(path, rows)
    total = sum(len(split) + len(split.skipped) for split in splits.values())
    if len(rows) > limit * total:
        raise TooManyUnreadable(
            f"{len(rows)} of {total} files are unreadable, more than max_skipped ({limit:.0%}) allows; they "
            f"are listed in {path}, the first: {rows[0]['reason']}"
        )
    logger.warning("left out %d files, listed in %s", len(rows), path)


def raise_problems(where: Path, problems: Sequence[str]) -> None:
    """Raise ValueError that names the first few problems, if there are any."""
    if problems:
        raise ValueError(f"{where}: {first_few(problems)}")


def first_few(problems: Sequence[str]) -> str:
    """The first few in one line, and how many more there are."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def choose_splits(names: Collection[str], split: str | None, data: str | Path) -> list[str]:
    """All splits, or the one that `choose_split` takes."""
    return list(names) if split is None else [choose_split(names, split, data)]


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


def train_val_test_split(splits: Mapping[str, S], fraction: float, seed: int) -> dict[str, S]:
    """The splits of DATA, with a validation split: where there is none, some training images, chosen by the
    seed.

    Raises:
        ValueError: there is no training split, or it has only one image.
    """
    if "train" not in splits:
        raise ValueError(
            "there is no training split: give train.json and images, or images/train and masks/train"
        )
    if "val" in splits:
        return dict(splits)
    count = len(splits["train"])
    if count < 2:
        raise ValueError("one training image cannot be split into training and validation: give more")
    order = np.random.default_rng(derive_seed("split", seed)).permutation(count)
    held_out = max(1, min(count - 1, round(fraction * count)))
    train, val = sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())
    return {**splits, "train": splits["train"].take(train), "val": splits["train"].take(val)}


def read_saved_split(path: Path, splits: Mapping[str, S]) -> dict[str, S]:
    """The images of each split that RUN/split.json lists, which the main process has checked."""
    saved = json.loads(path.read_text())
    listed = {}
    for name in (name for name in SPLITS if name in saved):
        opened = splits[name if name in splits else "train"]
        positions = {image: position for position, image in enumerate(opened.names)}
        listed[name] = opened.take([positions[image] for image in saved[name]])
    return listed


def save_or_check_split(path: Path, splits: Mapping[str, AnnotatedSplit]) -> None:
    """Write the images of each split to RUN/split.json, or compare them with what the file says.

    Raises:
        ValueError: images or annotations differ from those that the run started with.
    """
    content: dict[str, Any] = {name: split.names for name, split in splits.items()}
    content["annotations"] = {name: split.digest for name, split in splits.items()}
    if not path.is_file():
        write_json(path, content)
    elif json.loads(path.read_text()) != content:
        raise ValueError(
            f"the images or annotations are not those that {path.parent} started with ({path}): put them "
            "back, or start a new run"
        )
