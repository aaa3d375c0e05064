"""What DATA may be that is not read here: it is recognized, so that messages say what to do."""

from __future__ import annotations

import tarfile
import zipfile
from itertools import islice
from pathlib import Path

from PIL import Image

from atconv.data.folders import split_of, subfolders
from atconv.data.images import image_suffixes

__all__ = [
    "has_image",
    "is_archive",
    "is_image",
    "is_run",
    "is_table",
    "is_voc",
    "is_weights",
    "is_yolo",
]

_IMAGE_FOLDERS = {"images", "jpegimages"}
_TABLES = {".xls", ".xlsx", ".json", ".jsonl"}
_WEIGHTS = {".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".onnx"}
_LOOKED_AT = 1000  # files of a folder


def is_yolo(path: Path) -> bool:
    """Whether a folder holds images/ and labels/ with text files, or such folders for each split."""
    return any(
        not _IMAGE_FOLDERS.isdisjoint(inner) and "labels" in inner and _has(inner["labels"], ".txt")
        for inner in _places(path)
    )


def is_voc(path: Path) -> bool:
    """Whether a folder holds images and XML files: in Annotations/, or next to them in each split."""
    splits = [folder for folder in subfolders(path) if split_of(folder.name) and not subfolders(folder)]
    return any(_has(folder, ".xml") for folder in splits) or any(
        not _IMAGE_FOLDERS.isdisjoint(inner) and "annotations" in inner and _has(inner["annotations"], ".xml")
        for inner in _places(path)
    )


def _places(path: Path) -> list[dict[str, Path]]:
    """The folders in a folder, and in each of its splits, by name in lower case."""
    splits = [folder for folder in subfolders(path) if split_of(folder.name)]
    return [{folder.name.lower(): folder for folder in subfolders(place)} for place in [path, *splits]]


def _has(folder: Path, suffix: str) -> bool:
    """Whether such files are among the first in a folder."""
    return any(path.suffix.lower() == suffix for path in islice(folder.rglob("*"), _LOOKED_AT))


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / "config.yaml").is_file() and any(
        (path / name).exists() for name in ("split.json", "metrics.csv", "checkpoints", "config.json")
    )


def is_table(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in _TABLES


def is_weights(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in _WEIGHTS


def is_archive(path: Path) -> bool:
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


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
