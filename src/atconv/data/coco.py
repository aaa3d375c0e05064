"""Boxes and instance masks in COCO's format, checked before anything is trained on them.

    DATA/images/SPLIT/…, or DATA/images/…     images
    DATA/train.json, val.json, test.json      one COCO file for each split; val and test are optional
    DATA/annotations.json                     instead, where there are no splits

or as COCO itself comes: DATA/annotations/instances_train2017.json and DATA/train2017/; or as Roboflow exports
it: DATA/train/_annotations.coco.json among the images. val may be called valid or validation, train training.

Category ids may be any numbers; labels count the categories from 1, in the order of their ids.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atconv.data.annotated import (
    CheckImages,
    choose_splits,
    first_few,
    image_folder,
    image_problem,
    raise_problems,
)
from atconv.data.checking import in_threads
from atconv.data.coco_checks import annotation_problem, category_problems, clip_box, image_problems, is_id
from atconv.data.folders import SPLIT_NAMES, SPLITS
from atconv.data.images import Mode, read_image

__all__ = ["BadAnnotations", "Box", "CocoImage", "CocoSplit", "coco_splits", "encode_mask", "open_coco"]

logger = logging.getLogger(__name__)

BadAnnotations = Literal["reject", "skip"]

_ROBOFLOW = "_annotations.coco.json"


@dataclass(frozen=True)
class Box:
    """One annotation."""

    id: int
    label: int
    """1 … number of classes"""
    corners: tuple[float, float, float, float]
    """left, top, right, bottom in pixels, inside the image"""
    area: float | None
    """in pixels, where the file has it"""
    crowd: bool
    """stands for many objects; not trained on, and no detection inside it counts as wrong"""
    segmentation: Any = None
    """COCO's: polygons or run lengths"""


@dataclass(frozen=True)
class CocoImage:
    """One image and its annotations."""

    id: int
    name: str
    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class CocoSplit:
    """The images of one split."""

    folder: Path
    images: Sequence[CocoImage]
    classes: list[str]
    """labels count them from 1"""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        return [image.name for image in self.images]

    @property
    def digest(self) -> str:
        """Of all annotations of these images."""
        return hashlib.sha256(repr((self.classes, list(self.images))).encode()).hexdigest()

    @property
    def objects(self) -> int:
        """How many boxes stand for one object, in all images."""
        return sum(not box.crowd for image in self.images for box in image.boxes)

    def read(self, position: int, mode: Mode) -> Image.Image:
        return read_image(self.folder / self.images[position].name, mode)

    def size(self, position: int) -> tuple[int, int]:
        image = self.images[position]
        return image.height, image.width

    def take(self, positions: Sequence[int]) -> CocoSplit:
        """Some of its images."""
        return replace(self, images=[self.images[i] for i in positions])


def open_coco(
    data: str | Path,
    masks: bool,
    check_images: CheckImages = "decode",
    classes: list[str] | None = None,
    split: str | None = None,
    bad_annotations: BadAnnotations = "reject",
) -> dict[str, CocoSplit]:
    """The splits of a folder by name; a lone "train" is all there is.

    Args:
        data: the folder.
        masks: every box needs its mask.
        check_images: how image files are checked: decode each, read its header, or not at all.
        classes: names that the categories must have; default: those of the first split.
        split: open this split alone, as `choose_split` names it; default: all.
        bad_annotations: "skip" leaves out those that are wrong, and logs which.

    Raises:
        ValueError: no such folder or files, or annotations that are wrong: each is named.
    """
    data = Path(data)
    files = _annotation_files(data)
    splits = {}
    for name in choose_splits(files, split, data):
        file = files[name]
        opened, problems = _read_split(file, _image_folder(data, name, file), masks, classes)
        if problems and bad_annotations == "reject":
            raise ValueError(f"{file}: {first_few(problems)} (--bad-annotations skip leaves these out)")
        if problems:
            logger.warning(f"{file}: {len(problems)} annotations are left out: {first_few(problems)}")
        _check_images(opened, file, check_images)
        classes = classes or opened.classes
        splits[name] = opened
    return splits


def coco_splits(data: str | Path) -> list[str]:
    """The splits that have annotations."""
    return list(_annotation_files(Path(data)))


def _annotation_files(data: Path) -> dict[str, Path]:
    """SPLIT.json, in annotations/ too; or as COCO itself comes, annotations/instances_SPLIT….json; or as
    Roboflow exports it; or annotations.json alone."""
    files: dict[str, Path] = {}
    for split in SPLITS:
        paths = [
            data / folder / f"{name}.json" for name in SPLIT_NAMES[split] for folder in ("", "annotations")
        ]
        paths += [data / name / _ROBOFLOW for name in SPLIT_NAMES[split]]
        existing = [path for path in paths if path.is_file()]
        existing += sorted((data / "annotations").glob(f"instances_{split}*.json"))
        if len(existing) > 1:
            names = ", ".join(str(path.relative_to(data)) for path in existing)
            raise ValueError(f"{data} has several annotation files for {split}: {names}; leave one")
        if existing:
            files[split] = existing[0]
    if not files and (data / "annotations.json").is_file():
        files = {"train": data / "annotations.json"}
    if not files:
        raise ValueError(
            f"{data} does not exist or has no annotations: give a folder with images/ and train.json, "
            "val.json (COCO's format), or annotations.json; or COCO's own, with annotations/ and train2017/"
        )
    return files


def _image_folder(data: Path, split: str, file: Path) -> Path:
    """For annotations/instances_train2017.json, train2017/ or images/train2017/."""
    if file.name == _ROBOFLOW:
        return file.parent
    year = file.stem.removeprefix("instances_")
    own = [data / year, data / "images" / year] if file.parent != data else []
    return next((folder for folder in own if folder.is_dir()), image_folder(data, split))


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask, H W: {"size": [H, W], "counts": text}."""
    from faster_coco_eval.core import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def _read_split(
    file: Path, folder: Path, masks: bool, classes: list[str] | None
) -> tuple[CocoSplit, list[str]]:
    """A split without the annotations that are wrong, and what is wrong with them."""
    content = _read_json(file)
    raise_problems(file, [*category_problems(content["categories"]), *image_problems(content["images"])])
    labels, classes = _labels(file, content["categories"], classes)
    by_id = {image["id"]: image for image in content["images"]}
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
    images = [
        CocoImage(number, image["file_name"], image["width"], image["height"], tuple(boxes[number]))
        for number, image in by_id.items()
    ]
    return CocoSplit(folder, images, classes), problems


def _labels(
    file: Path, categories: list[dict[str, Any]], classes: list[str] | None
) -> tuple[dict[Any, int], list[str]]:
    """Labels by category id, and the classes that they count from 1."""
    ordered = sorted(categories, key=lambda category: category["id"])
    names = [str(category["name"]) for category in ordered]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"{file}: it has no categories, or two of one name: {', '.join(names[:10])}")
    if classes is not None and set(names) - set(classes):
        unknown = ", ".join(sorted(set(names) - set(classes))[:5])
        raise ValueError(
            f"{file}: its categories {unknown} are not among the classes {', '.join(classes[:10])}"
        )
    classes = list(classes or names)
    return {category["id"]: 1 + classes.index(str(category["name"])) for category in ordered}, classes


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
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
        float(annotation["area"]) if "area" in annotation else None,
        bool(annotation.get("iscrowd", 0)),
        annotation.get("segmentation"),
    )


def _check_images(split: CocoSplit, file: Path, check: CheckImages) -> None:
    def problem(position: int) -> str | None:
        image = split.images[position]
        reason = image_problem(split.folder / image.name, check, (image.width, image.height))
        return None if reason is None else f"image {image.id}: {reason}"

    results = in_threads(problem, len(split), "checking images")
    raise_problems(file, [reason for reason in results if reason is not None])
