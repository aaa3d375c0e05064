"""Which masks belong to which images, in the folders that people have: found by the names of files.

An image and its mask have one name but for suffixes and usual endings, such as x.jpg and x_mask.png. They lie
in one folder, or in two whose paths differ in one place, such as images/train and masks/train. Where names do
not say which is which, the files must look it.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath

from atconv.data.images import image_suffixes, is_ignored
from atconv.data.mask_looks import Look, look_at
from atconv.data.mask_names import find_ending, is_image_ending, names_images, names_masks, rank
from atconv.data.mask_pairs import MaskFolders, pair_splits
from atconv.io import first_few

__all__ = ["MaskLayout", "find_masks", "has_masks"]

_SAMPLE = 40  # names of a folder, by which its partner is found
_LOOKED_AT = 5  # masks of a folder
_MAX_FOLDERS, _MAX_CHILDREN = 500, 200  # looked at to recognize what DATA is
_MAX_RIVALS = 3  # folders of the same file names; more are classes


@dataclass(frozen=True)
class MaskLayout:
    """Where the images and masks of DATA lie."""

    splits: dict[str, MaskFolders] = field(default_factory=dict)
    """by name; a lone "train" is all there is"""
    unused: list[Path] = field(default_factory=list)
    """folders of images without masks"""


@dataclass(frozen=True, eq=False)
class _Folder:
    base: Path
    path: PurePosixPath
    """relative to base"""
    names: dict[str, str]
    """of image files, by stem"""

    @property
    def full(self) -> Path:
        return self.base / self.path


@dataclass(frozen=True)
class _Match:
    """A folder of images and one of masks."""

    images: _Folder
    masks: _Folder
    endings: tuple[str, str]
    """of the stems of images and of masks"""
    cores: list[str]
    """what is left of stems that match"""
    share: float
    """of the masks looked at that have an image"""
    named: bool
    """the names of folders or files say that these are masks"""

    @property
    def beside(self) -> bool:
        return self.images is self.masks

    @property
    def roots(self) -> tuple[Path, Path]:
        """The folders at the place where the paths differ."""
        images, masks = _without_common_end(self.images.path, self.masks.path)
        return self.images.base / images, self.masks.base / masks

    def preference(self) -> tuple[bool, bool, int, float, int]:
        """Of several matches of a folder of masks, the largest is taken."""
        left, right = str(self.images.path), str(self.masks.path)
        name = left if self.beside else _own_part(self.images, self.masks)
        alike = _common(left, right) + _common(left[::-1], right[::-1])
        return not names_masks(name), names_images(name), alike, self.share, -rank(self.endings[1])


def has_masks(path: Path) -> bool:
    """Whether a folder holds images and masks that look it."""
    folders = list(islice(_folders(path, _MAX_CHILDREN), _MAX_FOLDERS)) if path.is_dir() else []
    return any(map(_look_it, _matches(folders, folders, None)))


def find_masks(
    data: Path, images: Path | None = None, masks: str | None = None, ending: str | None = None
) -> MaskLayout:
    """Where images and masks lie; no splits where there are none.

    Args:
        data: the folder.
        images: the folder of images, where it is not in DATA.
        masks: the folder of masks in DATA; default: found by its name or looks.
        ending: what the names of masks have after those of images, before the suffix; default: a usual one.

    Raises:
        ValueError: masks may lie in several folders, or splits are mixed with other folders.
    """
    if masks is not None and not (data / masks).is_dir():
        raise ValueError(f"the folder of masks {data / masks} does not exist")
    if not data.is_dir():
        return MaskLayout()
    inside = list(_folders(data))
    left = inside if images is None else list(_folders(images))
    right = [f for f in inside if masks is None or f.full.is_relative_to(data / masks)]
    matches = list(_matches(left, right, ending))
    if masks is None and ending is None:
        named = [match for match in matches if match.named and not match.beside]
        matches = named or [match for match in matches if _look_it(match)]
    roots = _roots(matches, data)
    if not roots:
        return MaskLayout()
    votes: Counter[tuple[str, str]] = Counter()
    for match in matches:
        votes[match.endings] += len(match.cores)
    endings = max(votes, key=lambda each: (votes[each], -rank(each[1])))
    splits = pair_splits(roots, endings, images or data, data)
    used = {folder for pair in roots for folder in pair}
    unused = [f.full for f in left if not any(f.full.is_relative_to(root) for root in used)]
    unused += [part.images for part in splits.values() if not any(mask for _, mask in part.pairs)]
    return MaskLayout({name: part for name, part in splits.items() if part.images not in unused}, unused)


def _folders(base: Path, max_children: int | None = None) -> Iterator[_Folder]:
    """The folders from `base` down that hold images, those near it first."""
    suffixes, waiting = image_suffixes(), [base]
    while waiting:
        children: list[Path] = []
        for folder in waiting:
            try:
                with os.scandir(folder) as listing:
                    entries = sorted((e for e in listing if not is_ignored(e.name)), key=lambda e: e.name)
            except OSError:  # it is named where its images are listed
                continue
            inner = [Path(e.path) for e in entries if e.is_dir(follow_symlinks=folder == base)]
            children += inner[:max_children]
            stems = (os.path.splitext(entry.name) for entry in entries)
            names = {stem: stem + suffix for stem, suffix in stems if suffix.lower() in suffixes}
            if names:
                yield _Folder(base, PurePosixPath(folder.relative_to(base)), names)
        waiting = children


def _matches(left: Sequence[_Folder], right: Sequence[_Folder], ending: str | None) -> Iterator[_Match]:
    """For each folder that may hold masks the one that holds their images."""
    by_stem: dict[str, list[_Folder]] = defaultdict(list)
    endings = {""}
    for folder in left:
        for stem in folder.names:
            by_stem[stem].append(folder)
        endings |= {ending for ending in map(find_ending, _sample(folder)) if is_image_ending(ending)}
    for masks in right:
        candidates = list(_candidates(masks, by_stem, sorted(endings), ending))
        named = [match for match in candidates if match.named or match.beside]
        if named or 0 < len({match.images for match in candidates if _siblings(match)}) <= _MAX_RIVALS:
            yield max(named or candidates, key=_Match.preference)


def _candidates(
    masks: _Folder, by_stem: Mapping[str, list[_Folder]], image_endings: Sequence[str], ending: str | None
) -> Iterator[_Match]:
    """The folders that hold images of at least half of the masks looked at."""
    for mask_ending, cores in _cores(masks, ending).items():
        for image_ending in image_endings:
            shared: dict[_Folder, list[str]] = defaultdict(list)
            for core in cores:
                for folder in by_stem.get(core + image_ending, ()):
                    shared[folder].append(core)
            for images, common in shared.items():
                if 2 * len(common) >= len(cores) and (
                    images is not masks or mask_ending not in ("", image_ending)
                ):
                    own, theirs = _own_part(masks, images), _own_part(images, masks)
                    named = names_masks(mask_ending) or (names_masks(own) and not names_masks(theirs))
                    share, endings = len(common) / len(cores), (image_ending, mask_ending)
                    yield _Match(images, masks, endings, common, share, named)


def _cores(masks: _Folder, ending: str | None) -> dict[str, list[str]]:
    """What is left of the first stems without an ending, by ending."""
    if ending is not None:
        stems = sorted(stem for stem in masks.names if stem.endswith(ending))[:_SAMPLE]
        return {ending: [stem.removesuffix(ending) for stem in stems]} if stems else {}
    cores = defaultdict(list, {"": _sample(masks)})
    for stem in _sample(masks):
        found = find_ending(stem)
        if not is_image_ending(found):
            cores[found].append(stem.removesuffix(found))
    return cores


def _sample(folder: _Folder) -> list[str]:
    """Some stems. The first: files of one image stay together."""
    return sorted(folder.names)[:_SAMPLE]


def _look_it(match: _Match) -> bool:
    """Whether masks look like masks, and more so than their images where no name says that they are."""
    looks: list[tuple[Look, Look]] = []
    for core in match.cores[:: -(-len(match.cores) // _LOOKED_AT)]:
        image, mask = (
            look_at(folder.full / folder.names[core + ending])
            for folder, ending in zip((match.images, match.masks), match.endings, strict=True)
        )
        if image and mask:
            looks.append((image, mask))
    if not looks or not all(mask.flat for _, mask in looks):
        return False
    varied = any(mask.values > 1 for _, mask in looks)
    if all(image.flat for image, _ in looks):
        return match.named and varied
    return match.named or (varied and all(sorted(image.size) == sorted(mask.size) for image, mask in looks))


def _roots(matches: Sequence[_Match], data: Path) -> list[tuple[Path, Path]]:
    """The folders that images and masks lie in, without those inside of others.

    Raises:
        ValueError: there are several for the same images.
    """
    every = {match.roots for match in matches}
    roots = sorted(pair for pair in every if not any(_inside(pair, other) for other in every))
    for images in {image for image, _ in roots}:
        several = [str(mask.relative_to(data)) for image, mask in roots if image == images]
        if len(several) > 1:
            raise ValueError(
                f"the images in {images} have masks in {first_few(several)}: choose one, as --masks "
                f"{several[0]!r}"
            )
    return roots


def _inside(pair: tuple[Path, Path], other: tuple[Path, Path]) -> bool:
    return pair != other and all(a.is_relative_to(b) for a, b in zip(pair, other, strict=True))


def _without_common_end(left: PurePosixPath, right: PurePosixPath) -> tuple[PurePosixPath, PurePosixPath]:
    while left.parts and right.parts and left.name == right.name:
        left, right = left.parent, right.parent
    return left, right


def _own_part(folder: _Folder, other: _Folder) -> str:
    """A path without the start and the end that it shares with another."""
    path, theirs = _without_common_end(folder.path, other.path)
    return "/".join(path.parts[_common(path.parts, theirs.parts) :])


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """How many items two sequences share at their start."""
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _siblings(match: _Match) -> bool:
    """Whether the paths differ in the name of one folder."""
    images, masks = _without_common_end(match.images.path, match.masks.path)
    return images != masks and images.parent == masks.parent
