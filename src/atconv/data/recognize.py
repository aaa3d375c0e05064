"""What DATA is, where it is not images with a class each: the command that fits, or what to do first."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from PIL import Image

from atconv.data.folders import split_of, subfolders
from atconv.data.lmdb_format import is_lmdb

__all__ = ["recognize"]

_IMAGE_FOLDERS = {"images", "jpegimages"}
_MASK_FOLDERS = {"masks", "mask", "labels", "annotations", "segmentationclass"}
_MASK_ENDINGS = ("_masks", "_mask", "_labels", "_annotations", "_annot", "annot")
_TABLES = {".csv", ".tsv", ".txt", ".xls", ".xlsx", ".parquet", ".json", ".jsonl"}
_LOOKED_AT = 1000  # files of a folder
_COCO_START = 4096  # bytes of a JSON file in which a COCO file names its parts


def recognize(path: Path) -> str | None:
    """What a file or folder is that holds no images by class, and what to do, to follow its name in a
    message. None where it may be images by class, or a file in the LMDB format."""
    return _recognize_folder(path) if path.is_dir() else _recognize_file(path)


def _recognize_folder(path: Path) -> str | None:
    folders = {folder.name.lower(): folder for folder in subfolders(path)}
    splits = [folder for name, folder in folders.items() if split_of(name)]
    alone = "to use the images alone, give their folder"
    hint = f"use `atconv detect train`; {alone}"
    convert = f"convert them to COCO's format for `atconv detect train`; {alone}"
    for place in [path, *splits]:
        inner = {folder.name.lower(): folder for folder in subfolders(place)}
        images = [inner[name] for name in _IMAGE_FOLDERS & set(inner)]
        if images and "labels" in inner and _has(inner["labels"], (".txt",)):
            return f"is recognized as detection data in YOLO's format (images and labels): {convert}"
        if images and "annotations" in inner and _has(inner["annotations"], (".xml",)):
            return f"is recognized as detection data in Pascal VOC's format (images and XML files): {convert}"
        if _is_coco(
            [place, *(inner[n] for n in ("annotations",) if n in inner)], bool(images), place != path
        ):
            return f"is recognized as detection data in COCO's format: {hint}"
        masks = [inner[name] for name in _MASK_FOLDERS & set(inner) if images]
        masks += [inner[name + end] for name in inner for end in _MASK_ENDINGS if name + end in inner]
        if any(_has(folder, (".png",)) for folder in masks):
            return (
                "is recognized as images with masks: use `atconv segment train`; to use the images alone, "
                "give their folder"
            )
        if place != path and not inner and _has(place, (".xml",)):
            return f"is recognized as detection data in Pascal VOC's format (images and XML files): {convert}"
    lmdbs = [child for child in sorted(path.glob("*.lmdb")) if is_lmdb(child)]
    if lmdbs and not any(split_of(child.stem) for child in lmdbs):
        return f"holds LMDB files that are named after no split: give one of them, such as {lmdbs[0]}"
    return None


def _has(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether such files are among the first in a folder."""
    return any(path.suffix.lower() in suffixes for path in islice(folder.rglob("*"), _LOOKED_AT))


def _is_coco(places: Iterable[Path], images: bool, is_split: bool) -> bool:
    """Whether a COCO file lies there: by its usual names, or next to a folder of images."""
    files = [file for place in places for file in sorted(place.glob("*.json"))]
    usual = [f for f in files if f.name == "_annotations.coco.json" or f.name.startswith("instances_")]
    return any(_names_coco(file) for file in (files if images or is_split else usual))


def _names_coco(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(_COCO_START)
    return start.lstrip().startswith(b"{") and any(
        key in start for key in (b'"images"', b'"annotations"', b'"categories"')
    )


def _recognize_file(path: Path) -> str | None:
    if is_lmdb(path):
        return None
    suffix = path.suffix.lower()
    if suffix == ".json" and _names_coco(path):
        return "is recognized as annotations in COCO's format: give its folder to `atconv detect train`"
    if suffix in _TABLES:
        return (
            "is recognized as a table, and tables of labels are not read: put each image into a folder named "
            "after its class, and give the folder that holds these"
        )
    if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
        return "is recognized as an archive: unpack it, and give the folder"
    try:
        Image.open(path).close()
    except Exception:  # whatever it is, it is no image
        return None
    return "is recognized as one image: give a folder that holds a folder of images for each class"
