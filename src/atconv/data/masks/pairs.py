"""The images and masks in folders that belong together, paired by split."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atconv.data.annotated import raise_problems
from atconv.data.folders import SPLITS, paths_by_split, split_folders, split_of, subfolders
from atconv.data.listing import list_images
from atconv.data.masks.names import common_part, find_pattern
from atconv.io import first_few

__all__ = ["MaskFolders", "pair_splits"]


@dataclass(frozen=True)
class MaskFolders:
    """The images and masks of one split."""

    images: Path
    masks: Path
    pairs: list[tuple[str, str]]
    """names of an image and of its mask, relative to these folders; "" for one that is missing"""


def pair_splits(
    roots: Sequence[tuple[Path, Path]], patterns: tuple[str, str], images: Path, data: Path
) -> dict[str, MaskFolders]:
    """Folders of splits, in the roots or above them.

    Raises:
        ValueError: some are named after splits, and others are not.
    """
    if len(roots) == 1 and (listed := _listed_splits(*roots[0], patterns)):
        return listed
    if len(roots) == 1 and (named := split_folders(roots[0][0])):
        masks = paths_by_split(subfolders(roots[0][1]))
        pairs = {name: (folder, masks.get(name, roots[0][1] / folder.name)) for name, folder in named.items()}
        return {
            name: MaskFolders(*pair, list(_pair(*pair, patterns).values())) for name, pair in pairs.items()
        }
    by_split: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for pair in roots:
        words = re.split(r"[\W_\d]+", str(pair[0].relative_to(images)))
        by_split[next(filter(None, map(split_of, words)), "")].append(pair)
    if "" in by_split and len(by_split) > 1:
        others = first_few([str(pair[0].relative_to(images)) for pair in by_split[""]])
        raise ValueError(
            f"{images} holds {others} next to folders of splits: move it into one of them, or out"
        )
    ordered = {name or "train": by_split[name] for name in (*SPLITS, "") if name in by_split}
    return {name: _joined(pairs, patterns, images, data) for name, pairs in ordered.items()}


def _joined(
    roots: Sequence[tuple[Path, Path]], patterns: tuple[str, str], images: Path, data: Path
) -> MaskFolders:
    """The images and masks of one split, relative to the folders that hold all of them."""
    if len(roots) == 1:
        return MaskFolders(*roots[0], list(_pair(*roots[0], patterns).values()))
    pairs = []
    for root in roots:
        left, right = root[0].relative_to(images), root[1].relative_to(data)
        for image, mask in _pair(*root, patterns).values():
            pairs.append((image and (left / image).as_posix(), mask and (right / mask).as_posix()))
    return MaskFolders(images, data, pairs)


def _listed_splits(images: Path, masks: Path, patterns: tuple[str, str]) -> dict[str, MaskFolders]:
    """Pascal VOC's splits: ImageSets/Segmentation/train.txt and the like list images."""
    files = sorted((images.parent / "ImageSets" / "Segmentation").glob("*.txt"))
    lists = {split: file for file in files if file.is_file() and (split := split_of(file.stem))}
    if "train" not in lists:
        return {}
    pairs, splits = _pair(images, masks, patterns), {}
    for split in (name for name in SPLITS if name in lists):
        keys = lists[split].read_text(encoding="utf-8", errors="surrogateescape").split()
        splits[split] = MaskFolders(images, masks, [pairs.get(key, (key, "")) for key in keys])
    return splits


def _pair(images: Path, masks: Path, patterns: tuple[str, str]) -> dict[str, tuple[str, str]]:
    """The names of each image and its mask in two folders, by what they have in common.

    Raises:
        ValueError: two images have one mask, or the other way around.
    """
    files = list_images(masks).files if masks.is_dir() else []
    right = _by_core(masks, files, patterns[1], True)
    names = list_images(images).files
    if masks.is_relative_to(images):  # images in DATA, and masks in DATA/masks or next to them
        inside = f"{masks.relative_to(images).as_posix()}/" if masks != images else ""
        taken = {inside + name for name in right.values()}
        names = [name for name in names if name not in taken and (not inside or not name.startswith(inside))]
    left = _by_core(images, names, patterns[0], False)
    if masks == images:  # an image's other files, such as x_color.png next to x_labelIds.png
        others = {core for core in left if core not in right and _shortened(core) in left.keys() - {core}}
        left = {core: name for core, name in left.items() if core not in others}
    lone = sorted(right.keys() - left.keys())
    return {core: (left.get(core, ""), right.get(core, "")) for core in (*left, *lone)}


def _by_core(folder: Path, names: Sequence[str], pattern: str, only: bool) -> dict[str, str]:
    """Names by the part that images and masks have in common: `only` of those that are written so."""
    cores: dict[str, list[str]] = defaultdict(list)
    for name in names:
        above, stem = os.path.split(os.path.splitext(name)[0])
        core = common_part(stem, pattern)
        if core is not None or not only:
            cores[os.path.join(above, stem if core is None else core)].append(name)
    kind = "masks" if only else "images"
    twice = [f"{core} names two {kind}: rename one" for core, several in cores.items() if len(several) > 1]
    raise_problems(folder, twice)
    return {core: several[0] for core, several in cores.items()}


def _shortened(core: str) -> str:
    above, stem = os.path.split(core)
    return os.path.join(above, common_part(stem, find_pattern(stem)) or stem)
