"""What DATA may be that is not read here: it is recognized, so that messages say what to do."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from PIL import Image

from atconv.data.boxes.reading import read_start
from atconv.data.folders import splits_among, subfolders
from atconv.data.images import image_suffixes
from atconv.data.listing import scan

__all__ = ["UNREAD_BOXES", "file_of", "has_image", "holds_archives", "is_archive", "is_image"]

_LOOKED_AT = 1000  # files of a folder


def _places(path: Path) -> list[dict[str, Path]]:
    """The folders in a folder, and in each of its splits, by name in lower case."""
    places = [path, *splits_among(subfolders(path))]
    return [{folder.name.lower(): folder for folder in subfolders(place)} for place in places]


def file_of(*suffixes: str) -> Callable[[Path], bool]:
    """Whether a path is a file with one of these suffixes."""
    return lambda path: path.is_file() and path.suffix.lower() in suffixes


def is_archive(path: Path) -> bool:
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def holds_archives(path: Path) -> bool:
    """Whether there are archives among the first files of a folder."""
    return any(
        is_archive(file) for ending in (".zip", ".tar", ".gz", ".tgz") for file in _first(path, ending)
    )


def is_image(path: Path) -> bool:
    """Whether a file is an image, be it a damaged one, by its suffix or content."""
    if not path.is_file():
        return False
    try:
        Image.open(path).close()
    except Exception:  # whatever it is, it cannot be opened
        return path.suffix.lower() in image_suffixes()
    return True


def has_image(path: Path) -> bool:
    """Whether a folder holds an image, at any depth."""
    files = (file for file in path.rglob("*") if file.suffix.lower() in image_suffixes())
    return path.is_dir() and any(file.is_file() for file in files)


def _is_kitti(path: Path) -> bool:
    """Whether labels lie in label_2/ next to image_2/, or begin with a name and 14 numbers."""
    if any("label_2" in inner and "image_2" in inner for inner in _places(path)):
        return True
    folders = [
        path,
        *(folder for inner in _places(path) for name, folder in inner.items() if name == "labels"),
    ]
    return any(_is_kitti_file(file) for folder in folders for file in _first(folder, ".txt"))


def _is_kitti_file(path: Path) -> bool:
    with path.open("rb") as file:
        name, *numbers = file.readline(_LOOKED_AT).split() or [b""]
    return name.isalpha() and len(numbers) in (14, 15) and all(re.fullmatch(rb"-?[\d.]+", n) for n in numbers)


def _first(folder: Path, ending: str) -> list[Path]:
    """Some of the files in a folder whose names end so."""
    entries = islice(scan(folder), _LOOKED_AT) if folder.is_dir() else ()
    return [folder / entry.name for entry in entries if entry.name.endswith(ending) and entry.is_file()][:20]


def _is_labelme(path: Path) -> bool:
    return any(b'"shapes"' in read_start(file) for file in _first(path, ".json"))


def _is_supervisely(path: Path) -> bool:
    return (path / "meta.json").is_file() and any(
        "ann" in inner and "img" in inner for inner in _inside(path)
    )


def _inside(path: Path) -> list[dict[str, Path]]:
    return [{f.name: f for f in subfolders(place)} for place in [path, *subfolders(path)]]


def _has_file(*names: str) -> Callable[[Path], bool]:
    """Whether a folder, or one of its splits, holds a file of such a name."""
    return lambda path: any((place / name).is_file() for place in [path, *subfolders(path)] for name in names)


UNREAD_BOXES: dict[str, Callable[[Path], bool]] = {
    "KITTI's format": _is_kitti,
    "LabelMe's format": _is_labelme,
    "Supervisely's format": _is_supervisely,
    "CreateML's format": _has_file("_annotations.createml.json"),
    "VGG Image Annotator's format": _has_file("via_region_data.json", "via_project.json"),
    "CVAT's own format": lambda path: any(
        b"<annotations>" in read_start(f) for f in _first(path, "annotations.xml")
    ),
    "Roboflow's CSV format": _has_file("_annotations.csv"),
}
"""formats of boxes that are recognized and not read"""
