"""The images and masks in folders that belong together, paired by split."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atconv.data.annotated import raise_problems
from atconv.data.folders import SPLITS, split_folder, split_folders, split_of
from atconv.data.images import list_images
from atconv.data.mask_names import find_ending
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
    roots: Sequence[tuple[Path, Path]], endings: tuple[str, str], images: Path, data: Path
) -> dict[str, MaskFolders]:
    """Folders of splits, in the roots or above them.

    Raises:
        ValueError: some are named after splits, and others are not.
    """
    if len(roots) == 1 and (listed := _listed_splits(*roots[0], endings)):
        return listed
    if len(roots) == 1 and (named := split_folders(roots[0][0])):
        pairs = {name: (folder, split_folder(roots[0][1], name)) for name, folder in named.items()}
        return {
            name: MaskFolders(*pair, list(_pair(*pair, endings).values())) for name, pair in pairs.items()
        }
    by_split: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for pair in roots:
        words = re.split(r"[\W_]+", str(pair[0].relative_to(images)))
        by_split[next(filter(None, map(split_of, words)), "")].append(pair)
    if "" in by_split and len(by_split) > 1:
        others = first_few([str(pair[0].relative_to(images)) for pair in by_split[""]])
        raise ValueError(
            f"{images} holds {others} next to folders of splits: move it into one of them, or out"
        )
    ordered = {name or "train": by_split[name] for name in (*SPLITS, "") if name in by_split}
    return {name: _joined(pairs, endings, images, data) for name, pairs in ordered.items()}


def _joined(
    roots: Sequence[tuple[Path, Path]], endings: tuple[str, str], images: Path, data: Path
) -> MaskFolders:
    """The images and masks of one split, relative to the folders that hold all of them."""
    if len(roots) == 1:
        return MaskFolders(*roots[0], list(_pair(*roots[0], endings).values()))
    pairs = []
    for root in roots:
        left, right = root[0].relative_to(images), root[1].relative_to(data)
        for image, mask in _pair(*root, endings).values():
            pairs.append((image and (left / image).as_posix(), mask and (right / mask).as_posix()))
    return MaskFolders(images, data, pairs)


def _listed_splits(images: Path, masks: Path, endings: tuple[str, str]) -> dict[str, MaskFolders]:
    """Pascal VOC's splits: ImageSets/Segmentation/train.txt and the like list images."""
    files = sorted((images.parent / "ImageSets" / "Segmentation").glob("*.txt"))
    lists = {split: file for file in files if (split := split_of(file.stem))}
    if "train" not in lists:
        return {}
    pairs, splits = _pair(images, masks, endings), {}
    for split in (name for name in SPLITS if name in lists):
        keys = lists[split].read_text(encoding="utf-8", errors="replace").split()
        splits[split] = MaskFolders(images, masks, [pairs.get(key, (key, "")) for key in keys])
    return splits


def _pair(images: Path, masks: Path, endings: tuple[str, str]) -> dict[str, tuple[str, str]]:
    """The names of each image and its mask in two folders, by what they have in common.

    Raises:
        ValueError: two images have one mask, or the other way around.
    """
    right = _by_core(masks, list_images(masks).images, endings[1], True)
    names = list_images(images).images
    if masks.is_relative_to(images):  # images in DATA, and masks in DATA/masks or next to them
        inside = f"{masks.relative_to(images).as_posix()}/" if masks != images else ""
        taken = {inside + name for name in right.values()}
        names = [name for name in names if name not in taken and (not inside or not name.startswith(inside))]
    left = _by_core(images, names, endings[0], False)
    if masks == images:  # an image's other files, such as x_color.png next to x_labelIds.png
        others = {
            core
            for core in left
            if core not in right and core.removesuffix(find_ending(core)) in left.keys() - {core}
        }
        left = {core: name for core, name in left.items() if core not in others}
    lone = sorted(right.keys() - left.keys())
    return {core: (left.get(core, ""), right.get(core, "")) for core in (*left, *lone)}


def _by_core(folder: Path, names: Sequence[str], ending: str, only: bool) -> dict[str, str]:
    """Names by what stems have without an ending: `only` of those that have it."""
    cores: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stem = os.path.splitext(name)[0]
        if stem.endswith(ending) or not only:
            cores[stem.removesuffix(ending)].append(name)
    kind = "masks" if only else "images"
    twice = [f"{core} names two {kind}: rename one" for core, several in cores.items() if len(several) > 1]
    raise_problems(folder, twice)
    return {core: several[0] for core, several in cores.items()}
