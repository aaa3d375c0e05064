"""Boxes and instance masks in COCO's format.

    DATA/images/SPLIT/…, or DATA/images/…     images
    DATA/train.json, val.json, test.json      one COCO file for each split; val and test are optional
    DATA/annotations.json                     instead, where there are no splits

or as COCO itself comes: DATA/annotations/instances_train2017.json and DATA/train2017/; or as Roboflow exports
it: DATA/train/_annotations.coco.json among the images; or one file alone, as CVAT and Label Studio export it.
Names may be in any case; val may be called valid or validation, train training.

Category ids may be any numbers; labels count the categories from 1, in the order of their ids.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atconv.data.annotated import raise_problems
from atconv.data.arrays import SharedItems
from atconv.data.boxes.coco_checks import (
    annotation_problem,
    category_problems,
    corners_of,
    image_problems,
    is_id,
    leaves_folder,
)
from atconv.data.boxes.reading import clip_corners, local_name
from atconv.data.boxes.split import BadAnnotations, Box, BoxImage, BoxSplit, check_classes, report_bad
from atconv.data.folders import (
    IMAGE_FOLDERS,
    SPLITS,
    image_folders,
    split_folder,
    split_of,
    splits_among,
    subfolders,
)
from atconv.data.images import image_suffixes
from atconv.data.listing import scan
from atconv.data.unreadable import in_threads

__all__ = ["coco_splits", "is_coco", "is_coco_file", "read_coco"]

_START = 4096  # bytes of a JSON file in which a COCO file names its parts
# What tools call a file alone, likeliest first.
_USUAL = ("annotations", "instances_default", "result", "_annotations.coco")
# What they write around the name of a split: instances_train2017, train_annotations, coco_val.
_AROUND = {"annotation", "annotations", "annot", "bbox", "coco", "dataset", "instances", "labels"}


def is_coco(path: Path) -> bool:
    """Whether a folder holds COCO files: by their usual names, or next to images."""
    if not path.is_dir():
        return False
    near = _has_images(path)
    files = (f for f in _json_files(path) if near or f.parent != path or _is_usual(f.stem.lower()))
    return any(map(is_coco_file, files))


def _is_usual(stem: str) -> bool:
    return stem in _USUAL or "instances_" in stem or split_of(stem) is not None


def _has_images(path: Path) -> bool:
    """Whether images lie in a folder itself, or in one that is called so."""
    return any(
        entry.name.lower() in IMAGE_FOLDERS or os.path.splitext(entry.name)[1].lower() in image_suffixes()
        for entry in scan(path)
    )


def is_coco_file(path: Path) -> bool:
    """Whether a JSON file begins as COCO's do."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(_START).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"{") and any(
        key in start for key in (b'"images"', b'"annotations"', b'"categories"')
    )


def _json_files(data: Path) -> list[Path]:
    """The JSON files of a folder, of its annotations/ and of its splits."""
    children = subfolders(data)
    folders = [*(f for f in children if f.name.lower() == "annotations"), *splits_among(children)]
    return [
        folder / entry.name
        for folder in (data, *folders)
        for entry in scan(folder)
        if entry.name.lower().endswith(".json") and entry.is_file()
    ]


def _coco_files(data: Path) -> dict[str, Path]:
    """The file of each split: named after it, as train.json or annotations/instances_train2017.json are, or
    in its folder, as Roboflow's are; or one file alone, as CVAT and Label Studio export it.

    Raises:
        ValueError: there are several for a split, or several that are named after none.
    """
    if not data.is_dir():
        return {}
    jsons = _json_files(data)
    by_split: dict[str, dict[int, list[Path]]] = {}
    for path in jsons:
        split, rank = _split_of_file(path, data)
        if split is not None and (rank == 0 or is_coco_file(path)):
            by_split.setdefault(split, {}).setdefault(rank, []).append(path)
    files: dict[str, Path] = {}
    for split in (split for split in SPLITS if split in by_split):
        paths = by_split[split][min(by_split[split])]
        if len(paths) > 1:
            names = ", ".join(str(path.relative_to(data)) for path in paths)
            raise ValueError(f"{data} has several annotation files for {split}: {names}; leave one")
        files[split] = paths[0]
    if files:
        return files
    usual = [path for path in jsons if path.stem.lower() in _USUAL]
    alone = sorted(usual, key=lambda path: _USUAL.index(path.stem.lower()))[:1]
    alone = alone or [path for path in jsons if is_coco_file(path)]
    if len(alone) > 1:
        names = ", ".join(path.name for path in alone)
        raise ValueError(f"{data} has {names}, none named after a split: leave one, or rename")
    return {"train": alone[0]} if alone else {}


def _split_of_file(path: Path, data: Path) -> tuple[str | None, int]:
    """The split that a file is named after or that its folder is of, and how sure that is, from 0."""
    stem = path.stem.lower()
    if split := split_of(stem) or split_of(_year(path).rstrip("0123456789")):
        return split, 0
    if path.parent != data and (split := split_of(path.parent.name)):
        return split, int(stem != "_annotations.coco")
    words = [word for word in re.split(r"[\W_\d]+", stem) if word and word not in _AROUND]
    return split_of("_".join(words)), 2


def coco_splits(data: Path, images: Path | None) -> list[str]:
    """The splits that have annotations."""
    return list(_coco_files(data))


def _year(instances: Path) -> str:
    """train2017 of instances_train2017.json."""
    return re.sub("^instances_", "", instances.stem, flags=re.IGNORECASE)


def read_coco(
    data: Path,
    split: str,
    classes: Sequence[str] | None,
    images: Path | None,
    masks: bool,
    bad_annotations: BadAnnotations,
) -> BoxSplit:
    """A split without the annotations that are wrong.

    Args:
        classes: names that the categories must have; default: those of the file.
        images: the folder of images, which file names may lead anywhere in; default: one in DATA.
        masks: every box needs its mask.
        bad_annotations: "skip" leaves out those that are wrong, and logs which.

    Raises:
        ValueError: annotations are wrong: each is named.
    """
    file = _coco_files(data)[split]
    content = _read_json(file)
    folders = _image_folders(data, split, file, images)
    entries = [{**entry, "file_name": _file_name(entry["file_name"], folders)} for entry in content["images"]]
    raise_problems(file, [*category_problems(content["categories"]), *image_problems(entries)])
    folder = _folder_of(entries, folders)
    leaving = (leaves_folder(entry, folder, data, images) for entry in entries)
    raise_problems(file, [problem for problem in leaving if problem])
    categories = sorted(_without_roots(content), key=lambda category: category["id"])
    classes = check_classes(file, [str(category["name"]) for category in categories], classes)
    labels = {category["id"]: 1 + classes.index(str(category["name"])) for category in categories}
    by_id = {
        image["id"]: {**image, "width": int(image["width"]), "height": int(image["height"])}
        for image in entries
    }
    boxes: dict[Any, list[Box]] = {number: [] for number in by_id}
    bad: list[tuple[str, str]] = []
    annotations = content["annotations"]

    def check(position: int) -> str | None:
        return annotation_problem(annotations[position], by_id, labels, masks)

    results = in_threads(check, len(annotations), "checking annotations")
    for annotation, name, problem in zip(annotations, _names(annotations), results, strict=True):
        if problem is None:
            boxes[annotation["image_id"]].append(_box(annotation, by_id, labels))
        else:
            number = annotation.get("image_id")
            image = by_id.get(number, {}) if is_id(number) else {}
            bad.append((image.get("file_name", ""), f"annotation {name}: {problem}"))
    report_bad(file, bad, bad_annotations)
    items = SharedItems(
        BoxImage(number, image["file_name"], image["width"], image["height"], tuple(boxes[number]))
        for number, image in by_id.items()
    )
    return BoxSplit(where=file, folder=folder, classes=classes, items=items, bad=bad)


def _image_folders(data: Path, split: str, file: Path, images: Path | None) -> list[Path]:
    """Folders that file names may be relative to, likeliest first. For annotations/instances_train2017.json,
    train2017/ or images/train2017/; Label Studio's names start with images/."""
    root = images or data
    near = [] if images or file.parent == data else [file.parent]
    pools = image_folders(root, *near)
    folders = [place / _year(file) for place in (root, *pools)] if file.parent != data else []
    folders += [*(split_folder(pool, split) for pool in pools), split_folder(root, split), root]
    folders = [*near, *folders] if near and split_of(file.parent.name) else [*folders, *near]
    return [folder for folder in [*folders, *pools] if folder.is_dir()]


def _file_name(name: Any, folders: Sequence[Path]) -> Any:
    """With slashes where Windows wrote it, and without the server of a URL."""
    return local_name(name.replace("\\", "/"), folders) if isinstance(name, str) else name


def _folder_of(images: Sequence[dict[str, Any]], folders: Sequence[Path]) -> Path:
    """The folder that most of the first images lie in; the first of equals."""
    names = [image["file_name"] for image in images[:100]]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names))


def _without_roots(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Categories without those that no annotation has and that only stand above others, as Roboflow's first,
    or that are there under the same name again."""
    numbers = [annotation.get("category_id") for annotation in content["annotations"]]
    used = {number for number in numbers if is_id(number)}
    categories = [(c, str(c["name"]), str(c.get("supercategory"))) for c in content["categories"]]
    names, above = Counter(name for _, name, _ in categories), Counter(parent for _, _, parent in categories)
    taken = {name for category, name, _ in categories if category["id"] in used}

    def is_root(category: dict[str, Any], name: str, parent: str) -> bool:
        twice = names[name] > 1 and name in taken
        return category["id"] not in used and (twice or above[name] > (name == parent))

    return [category for category, name, parent in categories if not is_root(category, name, parent)]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: save it as such") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON: {error}; write it again") from error
    for name, required in (
        ("images", ("id", "file_name", "width", "height")),
        ("annotations", ()),
        ("categories", ("id", "name")),
    ):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{file} has no list {name!r}: it is not an annotation file in COCO's format")
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(f"{file}: {name}, number {i + 1} is no object: {str(entry)[:40]}")
            missing = [n for n in required if n not in entry]
            if missing:
                which = entry.get("id", f"number {i + 1}")
                raise ValueError(f"{file}: {name}, {which}: {', '.join(missing)} missing")
    if not content["images"]:
        raise ValueError(f"{file} lists no images")
    return content


def _names(annotations: Sequence[dict[str, Any]]) -> list[str]:
    """What to call each: its id, or its position in the file where the id is missing or not unique."""
    ids = [annotation.get("id") for annotation in annotations]
    counts = Counter(own for own in ids if is_id(own))
    unique = [is_id(own) and counts[own] == 1 for own in ids]
    return [str(own) if unique[i] else f"number {i + 1}" for i, own in enumerate(ids)]


def _box(annotation: dict[str, Any], images: dict[Any, dict[str, Any]], labels: dict[Any, int]) -> Box:
    image = images[annotation["image_id"]]
    return Box(
        annotation.get("id", 0),
        labels[annotation["category_id"]],
        clip_corners(corners_of(annotation["bbox"]), (image["width"], image["height"])),
        None if annotation.get("area") is None else float(annotation["area"]),
        bool(annotation.get("iscrowd")),
        annotation.get("segmentation"),
    )
