"""Boxes and instance masks in COCO's format.

    DATA/images/SPLIT/…, or DATA/images/…     images
    DATA/train.json, val.json, test.json      one COCO file for each split; val and test are optional
    DATA/annotations.json                     instead, where there are no splits

or as COCO itself comes: DATA/annotations/instances_train2017.json and DATA/train2017/; or as Roboflow exports
it: DATA/train/_annotations.coco.json among the images. val may be called valid or validation, train training.

Category ids may be any numbers; labels count the categories from 1, in the order of their ids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atconv.data.annotated import raise_problems
from atconv.data.arrays import SharedItems
from atconv.data.boxes import BadAnnotations, Box, BoxImage, BoxSplit, check_classes, report_bad
from atconv.data.checking import in_threads
from atconv.data.coco_checks import (
    annotation_problem,
    category_problems,
    clip_box,
    image_problems,
    is_id,
    leaves_folder,
)
from atconv.data.folders import SPLIT_NAMES, SPLITS, split_folder, split_of, subfolders

__all__ = ["coco_splits", "is_coco", "is_coco_file", "read_coco"]

_ROBOFLOW = "_annotations.coco.json"
_START = 4096  # bytes of a JSON file in which a COCO file names its parts


def is_coco(path: Path) -> bool:
    """Whether a folder holds COCO files: by their usual names, or next to a folder of images."""
    splits = [folder for folder in subfolders(path) if split_of(folder.name)]
    for place in [path, *splits]:
        inner = {folder.name.lower(): folder for folder in subfolders(place)}
        files = [
            *place.glob("*.json"),
            *(inner["annotations"].glob("*.json") if "annotations" in inner else ()),
        ]
        usual = [f for f in files if f.name == _ROBOFLOW or f.name.startswith("instances_")]
        with_images = place != path or not {"images", "jpegimages"}.isdisjoint(inner)
        if any(map(is_coco_file, files if with_images else usual)):
            return True
    return False


def is_coco_file(path: Path) -> bool:
    """Whether a JSON file begins as COCO's do."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(_START).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"{") and any(
        key in start for key in (b'"images"', b'"annotations"', b'"categories"')
    )


def _coco_files(data: Path) -> dict[str, Path]:
    """The file of each split: SPLIT.json, in annotations/ too; or as COCO itself comes,
    annotations/instances_SPLIT….json; or as Roboflow exports it; or one file alone, as CVAT and Label Studio
    export it.

    Raises:
        ValueError: there are several for a split.
    """
    jsons = sorted(data.glob("*.json")) + sorted((data / "annotations").glob("*.json"))
    instances = [path for path in jsons if path.name.startswith("instances_") and path.parent != data]
    roboflow = [folder / _ROBOFLOW for folder in subfolders(data) if (folder / _ROBOFLOW).is_file()]
    files: dict[str, Path] = {}
    for split in SPLITS:
        existing = [path for path in jsons if split_of(path.stem) == split]
        existing += [path for path in roboflow if split_of(path.parent.name) == split]
        existing += [path for path in instances if _year(path).lower().startswith(SPLIT_NAMES[split])]
        if len(existing) > 1:
            names = ", ".join(str(path.relative_to(data)) for path in existing)
            raise ValueError(f"{data} has several annotation files for {split}: {names}; leave one")
        if existing:
            files[split] = existing[0]
    if files:
        return files
    if len(instances) > 1:
        names = ", ".join(path.name for path in instances)
        raise ValueError(
            f"{data / 'annotations'} has {names}, none named after a split: leave one, or rename"
        )
    alone = [data / "annotations.json", *instances, data / "result.json", data / _ROBOFLOW]
    return next(({"train": path} for path in alone if path.is_file()), {})


def coco_splits(data: Path, images: Path | None) -> list[str]:
    """The splits that have annotations."""
    return list(_coco_files(data))


def _year(instances: Path) -> str:
    """train2017 of instances_train2017.json."""
    return instances.stem.removeprefix("instances_")


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
        images: the folder of images, which file names may lead anywhere in; default: DATA's own.
        masks: every box needs its mask.
        bad_annotations: "skip" leaves out those that are wrong, and logs which.

    Raises:
        ValueError: annotations are wrong: each is named.
    """
    file = _coco_files(data)[split]
    content = _read_json(file)
    entries = content["images"]
    raise_problems(file, [*category_problems(content["categories"]), *image_problems(entries)])
    folder = _folder_of(entries, _image_folders(data, split, file, images))
    raise_problems(file, [problem for entry in entries if (problem := leaves_folder(entry, folder, images))])
    categories = sorted(_without_roots(content), key=lambda category: category["id"])
    classes = check_classes(file, [str(category["name"]) for category in categories], classes)
    labels = {category["id"]: 1 + classes.index(str(category["name"])) for category in categories}
    by_id = {
        image["id"]: {**image, "width": int(image["width"]), "height": int(image["height"])}
        for image in entries
    }
    boxes: dict[Any, list[Box]] = {number: [] for number in by_id}
    problems = []
    annotations = content["annotations"]

    def check(position: int) -> str | None:
        return annotation_problem(annotations[position], by_id, labels, masks)

    results = in_threads(check, len(annotations), "checking annotations")
    for annotation, name, problem in zip(annotations, _names(annotations), results, strict=True):
        if problem is None:
            boxes[annotation["image_id"]].append(_box(annotation, by_id, labels))
        else:
            problems.append(f"annotation {name}: {problem}")
    report_bad(file, problems, bad_annotations)
    items = SharedItems(
        BoxImage(number, image["file_name"], image["width"], image["height"], tuple(boxes[number]))
        for number, image in by_id.items()
    )
    return BoxSplit(where=file, folder=folder, classes=classes, items=items)


def _image_folders(data: Path, split: str, file: Path, images: Path | None) -> list[Path]:
    """Folders that file names may be relative to, likeliest first. For annotations/instances_train2017.json,
    train2017/ or images/train2017/; Label Studio's names start with images/."""
    if images is None and file.name == _ROBOFLOW:
        return [file.parent]
    root = images or data
    folders = [root / _year(file), root / "images" / _year(file)] if file.parent != data else []
    folders += [split_folder(root / "images", split), split_folder(root, split), root]
    return [folder for folder in [*folders, images or file.parent] if folder.is_dir()]


def _folder_of(images: Sequence[dict[str, Any]], folders: Sequence[Path]) -> Path:
    """The folder that most of the first images lie in; the first of equals."""
    names = [image["file_name"] for image in images[:100]]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names))


def _without_roots(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Categories without those that only stand above others, as Roboflow's first: no annotation has them."""
    numbers = [annotation.get("category_id") for annotation in content["annotations"]]
    used = {number for number in numbers if is_id(number)}

    def is_root(category: dict[str, Any]) -> bool:
        others = [other for other in content["categories"] if other is not category]
        return category["id"] not in used and category["name"] in [o.get("supercategory") for o in others]

    return [category for category in content["categories"] if not is_root(category)]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
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
    return Box(
        annotation.get("id", 0),
        labels[annotation["category_id"]],
        clip_box(annotation["bbox"], images[annotation["image_id"]]),
        None if annotation.get("area") is None else float(annotation["area"]),
        bool(annotation.get("iscrowd")),
        annotation.get("segmentation"),
    )
