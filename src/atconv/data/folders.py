"""What folders are called: splits by their usual names, and all that is not the user's."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from atconv.data.images import image_suffixes
from atconv.data.listing import holds_runs, images_in, is_ignored, scan
from atconv.io import first_few

__all__ = [
    "IMAGE_FOLDERS",
    "SPLITS",
    "SPLIT_NAMES",
    "child_folder",
    "choose_split",
    "image_folders",
    "inner_folder",
    "paths_by_split",
    "split_folder",
    "split_folders",
    "split_of",
    "splits_among",
    "subfolders",
]

IMAGE_FOLDERS = ("images", "jpegimages", "imgs", "img")  # in lower case
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst", "evaluation", "holdout"),
}
_WORDS = re.compile(r"[\W_\d]+|(?<=[a-z])(?=[A-Z])")


def split_of(name: str) -> str | None:
    """The split that a folder or file is named after, in any case: Train, training_set, dev, Test images."""
    name = re.sub(r"[\W_]*(set|images|imgs|data)$", "", name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def splits_among(paths: Iterable[Path]) -> dict[Path, str]:
    """The split of each of several files or folders in one folder that is named after one: by a usual name;
    or by a word of it, where a training split and another differ in nothing else but numbers, as train2017
    and val2017, seg_train and seg_test, 1_train and 2_val do."""
    usual: dict[Path, str] = {}
    alike: dict[str, dict[Path, str]] = defaultdict(dict)
    for path in sorted(paths):
        name = path.name.removesuffix(".lmdb").removesuffix(".tar")
        if split := split_of(name):
            usual[path] = split
        words = _WORDS.split(name)
        found = [split for split in map(split_of, words) if split]
        if len(found) == 1:
            alike["".join(word for word in words if not split_of(word)).lower()][path] = found[0]
    families = {rest: family for rest, family in alike.items() if {"train"} < set(family.values())}
    named = usual | families.pop("", {})
    if "train" not in named.values():
        for family in families.values():
            named |= family
    return named


def choose_split(names: Collection[str], split: str, data: str | Path) -> str:
    """The name of the split to evaluate on; "auto" takes test, else val, else all, else train.

    Raises:
        ValueError: there is no such split.
    """
    name = next(n for n in ("test", "val", "all", "train") if n in names) if split == "auto" else split
    if name not in names:
        raise ValueError(f"{data} has no {name} split, only {', '.join(names)}: choose one with --split")
    return name


def paths_by_split(paths: Iterable[Path]) -> dict[str, Path]:
    """Those that are named after a split, by split.

    Raises:
        ValueError: two are named after one split.
    """
    named: dict[str, Path] = {}
    for path, split in sorted(splits_among(paths).items()):
        if split in named:
            raise ValueError(
                f"{path.parent} has {named[split].name} and {path.name}, two for the {split} split: leave "
                "one, and move or rename the other"
            )
        named[split] = path
    return {split: named[split] for split in SPLITS if split in named}


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones, those of tools and of runs; none where it is no
    folder."""
    if not folder.is_dir():
        return []
    # A file is told apart without asking the disk: there may be a million.
    entries = (e for e in scan(folder) if not e.is_file(follow_symlinks=False) and not is_ignored(e.name))
    return [folder / e.name for e in entries if os.path.isdir(e.path) and not holds_runs(e.path)]


def child_folder(folder: Path, names: Collection[str]) -> Path | None:
    """The folder in a folder that has one of these names, in any case."""
    return next((path for path in subfolders(folder) if path.name.lower() in names), None)


def image_folders(*places: Path) -> list[Path]:
    """The folders in some folders that are called images or the like."""
    return [path for place in places for path in subfolders(place) if path.name.lower() in IMAGE_FOLDERS]


def inner_folder(folder: Path) -> Path | None:
    """Where the data begin, in a folder that holds nothing but a folder of them."""
    inner = None
    while len(children := subfolders(folder)) == 1 and subfolders(children[0]):
        inner = folder = children[0]
    return inner


def split_folder(folder: Path, split: str) -> Path:
    """The folder of a split in a folder of images, else that folder itself."""
    return next((path for path, name in splits_among(subfolders(folder)).items() if name == split), folder)


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of splits in a folder of images, by split.

    Raises:
        ValueError: a split has two, or the folder holds other images, which would be ignored.
    """
    named = paths_by_split(subfolders(folder))
    unknown = [p.name for p in sorted(folder.iterdir()) if p not in named.values() and _holds_images(p)]
    if named and unknown:
        accepted = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
        raise ValueError(
            f"{folder} holds {first_few(unknown)} next to {', '.join(path.name for path in named.values())}: "
            f"move it into one of them, or out; splits are called {accepted}"
        )
    return named


def _holds_images(path: Path) -> bool:
    if is_ignored(path.name):
        return False
    return bool(images_in(path)) if path.is_dir() else path.suffix.lower() in image_suffixes()
