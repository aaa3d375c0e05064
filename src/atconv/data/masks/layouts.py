"""Which masks belong to which images, in the folders that people have: found by the names of files.

An image and its mask have one name but for suffixes and usual words, such as x.jpg and x_mask.png. They lie
in one folder, or in two whose paths differ in one place, such as images/train and masks/train. Where names do
not say which is which, the files must look it.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product, takewhile
from pathlib import Path, PurePosixPath

from atconv.data.images import image_suffixes
from atconv.data.listing import holds_runs, is_ignored, leads_down
from atconv.data.masks.looks import Look, look_at
from atconv.data.masks.names import (
    common_part,
    find_pattern,
    is_image_pattern,
    names_images,
    names_masks,
    rank,
)
from atconv.data.masks.pairs import MaskFolders, pair_splits
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
    patterns: tuple[str, str]
    """how stems of images and of masks are written"""
    cores: list[str]
    """what they have in common"""
    share: float
    """of the masks looked at that have an image"""
    named: bool
    """the names of folders or files say that these are masks"""

    @property
    def same_folder(self) -> bool:
        return self.images is self.masks

    @property
    def roots(self) -> tuple[Path, Path]:
        """The folders at the place where the paths differ."""
        images, masks = _without_common_end(self.images.path, self.masks.path)
        return self.images.base / images, self.masks.base / masks

    def preference(self) -> tuple[bool, bool, int, float, int]:
        """Of several matches of a folder of masks, the largest is taken."""
        left, right = str(self.images.path), str(self.masks.path)
        name = left if self.same_folder else _own_part(self.images, self.masks)
        alike = _common(left, right) + _common(left[::-1], right[::-1])
        return not names_masks(name), names_images(name), alike, self.share, -rank(self.patterns[1])


def has_masks(path: Path) -> bool:
    """Whether a folder holds images and masks that look it."""
    folders = list(islice(_folders(path, _MAX_CHILDREN), _MAX_FOLDERS)) if path.is_dir() else []
    return any(map(_look_it, _matches(folders, folders)))


def find_masks(
    data: Path, images: Path | None = None, masks: str | None = None, pattern: str | None = None
) -> MaskLayout:
    """Where images and masks lie; no splits where there are none.

    Args:
        data: the folder.
        images: the folder of images, where it is not in DATA.
        masks: the folder of masks in DATA; default: found by its name or looks.
        pattern: how stems of masks are written, such as *_labelIds; default: as is usual.

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
    chosen = masks is not None or pattern is not None
    matches = list(_matches(left, right, pattern, chosen))
    if not chosen:
        named = [match for match in matches if match.named and not match.same_folder]
        matches = named or [match for match in matches if _look_it(match)]
    roots = _roots(matches, data)
    if not roots:
        _check_names(left, right)
        return MaskLayout()
    votes: Counter[tuple[str, str]] = Counter()
    for match in matches:
        if any(match.roots == pair or _inside(match.roots, pair) for pair in roots):
            votes[match.patterns] += len(match.cores)
    patterns = max(votes, key=lambda each: (votes[each], -rank(each[1])))
    splits = pair_splits(roots, patterns, images or data, data)
    used = {folder for pair in roots for folder in pair}
    unused = [f.full for f in left if not any(f.full.is_relative_to(root) for root in used)]
    bare = [name for name, part in splits.items() if not any(mask for _, mask in part.pairs)]
    unused += [splits.pop(name).images for name in bare]
    return MaskLayout(splits, unused)


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
            inner = [
                Path(e.path)
                for e in entries
                if e.is_dir(follow_symlinks=False)
                or (folder == base and e.is_symlink() and leads_down(e, os.fspath(base)))
            ]
            children += [child for child in inner if not holds_runs(child)][:max_children]
            stems = (os.path.splitext(entry.name) for entry in entries)
            names = {stem: stem + suffix for stem, suffix in stems if suffix.lower() in suffixes}
            if names:
                yield _Folder(base, PurePosixPath(folder.relative_to(base)), names)
        waiting = children if max_children is None else children[:_MAX_FOLDERS]


def _matches(
    left: Sequence[_Folder], right: Sequence[_Folder], pattern: str | None = None, chosen: bool = False
) -> Iterator[_Match]:
    """For each folder that may hold masks the one that holds their images. `chosen`: a person says where."""
    by_stem: dict[str, list[_Folder]] = defaultdict(list)
    patterns = {"*"}
    for folder in left:
        for stem in folder.names:
            by_stem[stem].append(folder)
        patterns |= {found for found in map(find_pattern, _sample(folder)) if is_image_pattern(found)}
    for masks in right:
        candidates = list(_candidates(masks, by_stem, sorted(patterns), pattern))
        named = [match for match in candidates if match.named or match.same_folder or chosen]
        if named or 0 < len({match.images for match in candidates if _siblings(match)}) <= _MAX_RIVALS:
            yield max(named or candidates, key=_Match.preference)


def _candidates(
    masks: _Folder, by_stem: Mapping[str, list[_Folder]], image_patterns: Sequence[str], pattern: str | None
) -> Iterator[_Match]:
    """The folders that hold images of at least half of the masks looked at."""
    cores = _cores(masks, pattern)
    for mask_pattern, image_pattern in product(cores, image_patterns):
        found: dict[_Folder, list[str]] = defaultdict(list)
        for core in cores[mask_pattern]:
            for folder in by_stem.get(image_pattern.replace("*", core), ()):
                found[folder].append(core)
        for images, common in found.items():
            share = len(common) / len(cores[mask_pattern])
            if share < 0.5 or (images is masks and mask_pattern in ("*", image_pattern)):
                continue
            own, theirs = _own_part(masks, images), _own_part(images, masks)
            named = names_masks(mask_pattern) or (names_masks(own) and not names_masks(theirs))
            yield _Match(images, masks, (image_pattern, mask_pattern), common, share, named)


def _cores(masks: _Folder, pattern: str | None) -> dict[str, list[str]]:
    """What some stems may have in common with those of images, by how they are written."""
    if pattern is not None:
        found = [core for stem in sorted(masks.names) if (core := common_part(stem, pattern))]
        return {pattern: found[:_SAMPLE]} if found else {}
    cores = defaultdict(list, {"*": _sample(masks)})
    for stem in _sample(masks):
        written = find_pattern(stem)
        if not is_image_pattern(written):
            cores[written].append(common_part(stem, written) or stem)
    return cores


def _sample(folder: _Folder) -> list[str]:
    """Some stems. The first: files of one image stay together."""
    return sorted(folder.names)[:_SAMPLE]


def _look_it(match: _Match) -> bool:
    """Whether masks look like masks, and more so than their images where no name says that they are."""
    looks: list[tuple[Look, Look]] = []
    for core in match.cores[:: -(-len(match.cores) // _LOOKED_AT)]:
        image, mask = (
            look_at(folder.full / folder.names[pattern.replace("*", core)])
            for folder, pattern in zip((match.images, match.masks), match.patterns, strict=True)
        )
        if image and mask:
            looks.append((image, mask))
    if not looks or not all(mask.flat for _, mask in looks):
        return False
    varied = any(mask.values > 1 for _, mask in looks)
    if all(image.flat for image, _ in looks):
        return match.named and (varied or all(mask.gray and not image.gray for image, mask in looks))
    return match.named or (varied and all(sorted(image.size) == sorted(mask.size) for image, mask in looks))


def _roots(matches: Sequence[_Match], data: Path) -> list[tuple[Path, Path]]:
    """The folders that images and masks lie in, without those inside of others.

    Raises:
        ValueError: there are several for the same images.
    """
    every = {match.roots for match in matches}
    by_images: dict[Path, list[Path]] = defaultdict(list)
    for images, masks in sorted(pair for pair in every if not any(_inside(pair, other) for other in every)):
        by_images[images].append(masks)
    for images, several in by_images.items():
        preferred = [path for path in several if names_masks(path.name)] or several
        if len(preferred) > 1:
            names = [path.relative_to(data).as_posix() for path in preferred]
            raise ValueError(
                f"the images in {images} have masks in {first_few(names)}: choose one, such as --masks "
                f"{names[0]!r}"
            )
        by_images[images] = preferred
    return [(images, masks) for images, [masks] in by_images.items()]


def _check_names(left: Sequence[_Folder], right: Sequence[_Folder]) -> None:
    """Raise ValueError where folders are called images and masks, and their files have no names in common."""
    masks = [folder for folder in right if names_masks(str(folder.path))]
    images = [folder for folder in left if folder not in masks and names_images(str(folder.path))]
    if masks and images:
        names = [next(iter(folder.names.values())) for folder in (images[0], masks[0])]
        raise ValueError(
            f"images in {images[0].full} and masks in {masks[0].full} have no names in common, such as "
            f"{names[0]} and {names[1]}: give both the same name, or say how masks are named, such as "
            "--mask-names '*_mask'"
        )


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
