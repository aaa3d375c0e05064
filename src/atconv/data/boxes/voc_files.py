"""Where images and XML files lie in Pascal VOC's format."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from atconv.data.boxes.reading import leads_outside, local_name, read_lines, read_start
from atconv.data.folders import (
    IMAGE_FOLDERS,
    SPLITS,
    child_folder,
    paths_by_split,
    split_folder,
    split_of,
    splits_among,
    subfolders,
)
from atconv.data.listing import is_ignored, list_files, list_images, scan

__all__ = ["ImageIndex", "Place", "find_places", "is_voc", "is_voc_file", "voc_splits", "xml_files"]

_ANNOTATIONS = ("annotations", "xmls", "xml")


@dataclass(frozen=True)
class Place:
    """Where the XML files and the images of a split lie, and their names where these are listed."""

    annotations: Path
    images: Path
    names: list[str] | None = None


def is_voc(path: Path) -> bool:
    """Whether a folder holds images and XML files in Pascal VOC's format."""
    splits = list(splits_among(subfolders(path)))
    return path.is_dir() and any(_is_annotated(place) for place in [path, *splits])


def _is_annotated(place: Path) -> bool:
    """Whether XML files lie in a folder next to images; or among images, with boxes in them."""
    annotations = child_folder(place, _ANNOTATIONS)
    if annotations and child_folder(place, IMAGE_FOLDERS) and _holds_xml(annotations):
        return True
    files = [place / entry.name for entry in scan(place) if _is_xml(entry.name) and entry.is_file()]
    return any(map(is_voc_file, files[:20]))


def is_voc_file(path: Path) -> bool:
    """Whether an XML file begins as VOC's do."""
    return _is_xml(path.name) and path.is_file() and bool(re.search(rb"<annotation[\s/>]", read_start(path)))


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml") and not is_ignored(name)


def _holds_xml(folder: Path) -> bool:
    return any(_is_xml(path.name) for path in islice(folder.rglob("*"), 1000))


def voc_splits(data: Path, images: Path | None) -> list[str]:
    """The splits that have XML files; none where this is not Pascal VOC's format."""
    annotations = child_folder(data, _ANNOTATIONS) if images else None
    return (
        list(find_places(data, images)) if is_voc(data) or (annotations and _holds_xml(annotations)) else []
    )


def find_places(data: Path, images: Path | None) -> dict[str, Place]:
    """Where each split lies.

    Raises:
        ValueError: a list of names cannot be read, or a split has two folders.
    """
    annotations = child_folder(data, _ANNOTATIONS)
    if annotations is None:
        places = {}
        for split, path in (paths_by_split(subfolders(data)) or {"train": data}).items():
            pool = split_folder(images, split) if images else child_folder(path, IMAGE_FOLDERS) or path
            places[split] = Place(child_folder(path, _ANNOTATIONS) or path, pool)
        return places
    pool = images or child_folder(data, IMAGE_FOLDERS) or data
    if listed := _listed_names(data):
        return {split: Place(annotations, pool, listed[split]) for split in SPLITS if split in listed}
    inner = paths_by_split(subfolders(annotations))
    places = {split: Place(path, split_folder(pool, split)) for split, path in inner.items()}
    return places or {"train": Place(annotations, pool)}


def _listed_names(data: Path) -> dict[str, list[str]]:
    """The names in ImageSets/Main/train.txt, val.txt and test.txt. trainval.txt, or CVAT's default.txt, is
    train where there is no train.txt."""
    sets = child_folder(data, ["imagesets"])
    main = child_folder(sets, ["main"]) if sets else None
    if main is None:
        return {}
    files = {entry.name[:-4]: main / entry.name for entry in scan(main) if entry.name.endswith(".txt")}
    named = {split: path for stem, path in files.items() if (split := split_of(stem))}
    for stem in ("trainval", "default"):
        if stem in files:
            named.setdefault("train", files[stem])
    listed = {}
    for split, path in named.items():
        lines = [
            (number, line.strip())
            for number, line in enumerate(read_lines(path, names=True), 1)
            if line.strip()
        ]
        for number, line in lines:
            if leads_outside(line, data, data):
                raise ValueError(f"{path}, line {number}: {line!r} leads out of {data}: remove it")
        listed[split] = [line for _, line in lines]
    return listed


def xml_files(place: Place) -> dict[str, Path]:
    """The XML files of a split, by their names without suffix. Those that are listed may not be there."""
    if place.names is None:
        names = list_files(place.annotations, frozenset({".xml"})).files
        return {name[: -len(".xml")]: place.annotations / name for name in names}
    files = {}
    for line in place.names:
        name = line if (place.annotations / f"{line}.xml").is_file() else line.split()[0]  # "000005  1"
        files[name] = place.annotations / f"{name}.xml"
    return files


class ImageIndex:
    """The images of a split, by the names of XML files."""

    def __init__(self, place: Place, data: Path, images: Path | None) -> None:
        self.folder, self.root = place.images, images or data
        self.names = set(list_images(place.images).files)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.names):
            path = PurePosixPath(name)
            for stem in {path.with_suffix("").as_posix(), path.stem}:
                self._by_stem[stem].append(name)

    def same(self, name: str) -> list[str]:
        """The images of the same name as an XML file."""
        return self._by_stem.get(name) or self._by_stem.get(PurePosixPath(name).name) or []

    def find(self, name: str, filename: str) -> str:
        """The image of an XML file: that of the same name, else the one that the file
        names, which may not be there.

        Raises:
            ValueError: there are two, or it lies outside DATA.
        """
        same = self.same(name)
        if len(same) > 1 and filename not in same:
            raise ValueError(f"{same[0]} and {same[1]} both belong to it: rename one")
        if same:
            return filename if filename in same else same[0]
        filename = local_name(filename, [self.folder])
        if leads_outside(filename, self.folder, self.root):
            raise ValueError(
                f"its filename {filename!r} leads out of {self.root}: put it there, or name the folder "
                "that holds all images with --images"
            )
        return filename or f"{name}.jpg"
