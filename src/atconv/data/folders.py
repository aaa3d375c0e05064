"""What folders are called: splits by their usual names, and all that is not the user's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from atconv.data.images import is_ignored

__all__ = ["SPLITS", "SPLIT_NAMES", "inner_folder", "paths_by_split", "split_of", "subfolders"]

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def split_of(name: str) -> str | None:
    """The split that a folder or file is named after, in any case: Train, training_set, dev."""
    name = re.sub(r"[\W_]*set$", "", name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def paths_by_split(paths: Iterable[Path]) -> dict[str, Path]:
    """Those that are named after a split, by split.

    Raises:
        ValueError: two are named after one split.
    """
    named: dict[str, Path] = {}
    for path in sorted(paths):
        split = split_of(path.stem)
        if split in named:
            raise ValueError(
                f"{path.parent} has {named[split].name} and {path.name}, two for the {split} split: leave one"
            )
        if split is not None:
            named[split] = path
    return {split: named[split] for split in SPLITS if split in named}


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones and those of tools."""
    return sorted(path for path in folder.iterdir() if not is_ignored(path.name) and path.is_dir())


def inner_folder(folder: Path) -> Path | None:
    """Where the data begin, in a folder that holds nothing but a folder of them."""
    inner = None
    while len(children := subfolders(folder)) == 1 and subfolders(children[0]):
        inner = folder = children[0]
    return inner
