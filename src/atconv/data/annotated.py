"""What annotated folders share: where a side's pictures lie, what is wrong with a file, what is held out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image
from typing_extensions import Self

from atconv.data.images import IMAGE_SUFFIXES, images_in, read_image
from atconv.data.splits import SPLIT_NAMES, SPLITS
from atconv.engine.rng import derive_seed
from atconv.engine.run import Run
from atconv.io import write_json

__all__ = [
    "AnnotatedSplit",
    "batches_of_one_size",
    "choose_side",
    "first_few",
    "image_folder",
    "picture_problem",
    "raise_problems",
    "save_or_check_split",
    "sides_in",
    "train_val_test_split",
]

_TOLD = 5  # problems that are named; the others are counted


class AnnotatedSplit(Protocol):
    """Pictures of one side, by position."""

    @property
    def names(self) -> list[str]: ...

    @property
    def digest(self) -> str:
        """Another one where the annotations are others."""
        ...

    def __len__(self) -> int: ...

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of a picture, upright."""
        ...

    def take(self, positions: Sequence[int]) -> Self: ...


S = TypeVar("S", bound=AnnotatedSplit)


def image_folder(data: Path, side: str, kind: str = "images") -> Path:
    """DATA/images/SIDE where it is there, under any of its names, else DATA/images."""
    return next(iter(_folders_of(data / kind, side)), data / kind)


def sides_in(folder: Path) -> list[str]:
    """The sides that have a folder of their own in a folder of pictures.

    Raises:
        ValueError: one has two, or something else lies beside them, which would be passed over.
    """
    found = {side: _folders_of(folder, side) for side in SPLITS}
    for side, folders in found.items():
        if len(folders) > 1:
            told = " and ".join(path.name for path in folders)
            raise ValueError(f"{folder} has {told}, two folders for {side}: leave one")
    own = [path for folders in found.values() for path in folders]
    others = [path.name for path in sorted(folder.iterdir()) if path not in own and _holds_pictures(path)]
    if own and others:
        raise ValueError(
            f"{folder} holds {first_few(others)} beside {', '.join(path.name for path in own)}: move it into "
            f"one of them, or out; sides are called {', '.join(n for ns in SPLIT_NAMES.values() for n in ns)}"
        )
    return [side for side, folders in found.items() if folders]


def _folders_of(folder: Path, side: str) -> list[Path]:
    return [folder / name for name in SPLIT_NAMES[side] if (folder / name).is_dir()]


def _holds_pictures(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return bool(images_in(path)) if path.is_dir() else path.suffix.lower() in IMAGE_SUFFIXES


def picture_problem(path: Path, how: str, size: tuple[int, int] | None = None) -> str | None:
    """What is wrong with a picture file.

    Args:
        how: "decode" reads it in full, "header" its header, "none" only asks whether it is there.
        size: width and height that it must have, upright.
    """
    if not path.is_file():
        return f"{path} is not there: put it back, or remove its entry"
    if how == "none":
        return None
    try:
        if how == "decode":
            found = read_image(path, "L").size
        else:
            with Image.open(path) as image:
                turned = image.getexif().get(0x0112, 1) >= 5  # orientation: on its side
                found = image.size[::-1] if turned else image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).partition("\n")[0]
        return reason if str(path) in reason else f"{path}: not a readable picture ({reason})"
    if size is not None and found != size:
        told = f"{size[0]} × {size[1]}"
        return f"{path} is {found[0]} × {found[1]} pixels and not {told} as its mask or annotation says"
    return None


def raise_problems(where: Path, problems: Sequence[str]) -> None:
    """Raise ValueError that names the first few problems, if there are any."""
    if problems:
        raise ValueError(f"{where}: {first_few(problems)}")


def first_few(problems: Sequence[str]) -> str:
    """The first few in one line, and how many more there are."""
    more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
    return "; ".join(problems[:_TOLD]) + more


def choose_side(sides: Collection[str], split: str, data: str | Path) -> str:
    """The side to evaluate on: "auto" takes test, else val, else train. ValueError where it is not there."""
    name = next(n for n in reversed(SPLITS) if n in sides) if split == "auto" else split
    if name not in sides:
        raise ValueError(f"{data} has no {name} side, only {', '.join(sides)}: choose one with --split")
    return name


def batches_of_one_size(side: AnnotatedSplit, positions: Sequence[int], most: int) -> list[list[int]]:
    """Positions in batches of pictures of one size: padding one to another's size would change what is found
    in it, and figures would depend on the batch."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position in positions:
        groups[side.size(position)].append(position)
    return [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]


def train_val_test_split(sides: Mapping[str, S], fraction: float, seed: int) -> dict[str, S]:
    """The sides with a validation side: where there is none, some training pictures, drawn by the seed.

    Raises:
        ValueError: there is no training side, or it has only one picture.
    """
    if "train" not in sides:
        raise ValueError(
            "there is no training side: give train.json and images, or images/train and masks/train"
        )
    if "val" in sides:
        return dict(sides)
    count = len(sides["train"])
    if count < 2:
        raise ValueError("one training picture cannot be shared out to training and validation: give more")
    order = np.random.default_rng(derive_seed("split", seed)).permutation(count)
    held = max(1, min(count - 1, round(fraction * count)))
    train, val = sorted(order[held:].tolist()), sorted(order[:held].tolist())
    return {**sides, "train": sides["train"].take(train), "val": sides["train"].take(val)}


def save_or_check_split(run: Run, sides: Mapping[str, AnnotatedSplit]) -> None:
    """Write which pictures are on which side, or compare with what a run that goes on has written.

    Raises:
        ValueError: other pictures or annotations are there than when the run began.
    """
    told: dict[str, Any] = {name: side.names for name, side in sides.items()}
    told["annotations"] = {name: side.digest for name, side in sides.items()}
    if run.split.is_file():
        if json.loads(run.split.read_text()) != told:
            raise ValueError(
                f"the pictures or annotations are not those that {run.path} began with ({run.split}): put "
                "them back, or start anew"
            )
        return
    write_json(run.split, told)
