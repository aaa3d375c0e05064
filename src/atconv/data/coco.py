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
    leave_out,
    raise_problems,
    size_problem,
)
from atconv.data.checking import in_threads
from atconv.data.coco_checks import (
    annotation_problem,
    category_problems,
    clip_box,
    decode_mask,
    image_problems,
    is_id,
)
from atconv.data.folders import SPLIT_NAMES, SPLITS
from atconv.data.images import Mode, read_image
from atconv.data.orientation import Exif, annotation_turns, turn_corners, turn_mask, turn_size

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
    """upright"""
    boxes: tuple[Box, ...]
    turn: int = 1
    """EXIF orientation by which masks are turned upright"""


@dataclass(frozen=True)
class CocoSplit:
    """The images of one split."""

    folder: Path
    images: Sequence[CocoImage]
    classes: list[str]
    """labels count them from 1"""
    skipped: Sequence[tuple[str, str]] = ()
    """images that were left out, and why"""

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

    def count_boxes(self, crowd: bool) -> Counter[str]:
        """How many boxes of each class stand for many objects, or for one."""
        boxes = (box for image in self.images for box in image.boxes)
        return Counter(self.classes[box.label - 1] for box in boxes if box.crowd == crowd)

    def read(self, position: int, mode: Mode) -> Image.Image:
        return read_image(self.folder / self.images[position].name, mode)

    def size(self, position: int) -> tuple[int, int]:
        image = self.images[position]
        return image.height, image.width

    def masks(self, position: int) -> list[NDArray[np.uint8]]:
        """The mask of each box of an image, H W of 0 and 1."""
        image = self.images[position]
        width, height = turn_size((image.width, image.height), image.turn)
        decoded = [decode_mask(box.segmentation, height, width) for box in image.boxes]
        return [turn_mask(mask, image.turn) for mask in decoded]

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
    exif: Exif | None = None,
    skip_unreadable: bool = False,
) -> dict[str, CocoSplit]:
    """The splits of a folder by name; a lone "train" is all there is.

    Args:
        data: the folder.
        masks: every box needs its mask.
        check_images: how image files are checked: decode each, read its header, or not at all.
        classes: names that the categories must have; default: those of the first split.
        split: open this split alone, as `choose_split` names it; default: all.
        bad_annotations: "skip" leaves out those that are wrong, and logs which.
        exif: what annotations of images with an EXIF orientation belong to; default: as sizes tell.
        skip_unreadable: leave out images that cannot be read; the split's `skipped` lists them.

    Raises:
        ValueError: no such folder or files, or annotations that are wrong: each is named.
    """
    data = Path(data)
    files = _annotation_files(data)
    splits = {}
    for name in choose_splits(files, split, data):
        file = files[name]
        opened, problems = _read_split(file, _image_folders(data, name, file), masks, classes)
        if problems and bad_annotations == "reject":
            raise ValueError(f"{file}: {first_few(problems)} (--bad-annotations skip leaves these out)")
        if problems:
            logger.warning(f"{file}: {len(problems)} annotations are left out: {first_few(problems)}")
        classes = classes or opened.classes
        splits[name] = _turn_upright(_check_images(opened, file, check_images, skip_unreadable), exif)
        if check_images != "none":
            _check_sizes(splits[name], file)
    return splits


def coco_splits(data: str | Path) -> list[str]:
    """The splits that have annotations."""
    return list(_annotation_files(Path(data)))


def _annotation_files(data: Path) -> dict[str, Path]:
    """SPLIT.json, in annotations/ too; or as COCO itself comes, annotations/instances_SPLIT….json; or as
    Roboflow exports it; or one file alone, as CVAT and Label Studio export it."""
    instances = sorted((data / "annotations").glob("instances_*.json"))
    files: dict[str, Path] = {}
    for split in SPLITS:
        paths = [
            data / folder / f"{name}.json" for name in SPLIT_NAMES[split] for folder in ("", "annotations")
        ]
        paths += [data / name / _ROBOFLOW for name in SPLIT_NAMES[split]]
        existing = [path for path in paths if path.is_file()]
        existing += [path for path in instances if _named_after(path, split)]
        if len(existing) > 1:
            names = ", ".join(str(path.relative_to(data)) for path in existing)
            raise ValueError(f"{data} has several annotation files for {split}: {names}; leave one")
        if existing:
            files[split] = existing[0]
    if not files and len(instances) > 1:
        names = ", ".join(path.name for path in instances)
        raise ValueError(
            f"{data / 'annotations'} has {names}, none named after a split: leave one, or rename"
        )
    alone = [data / "annotations.json", *instances, data / "result.json"]
    existing = [path for path in alone if path.is_file()]
    if not files and existing:
        files = {"train": existing[0]}
    if not files:
        raise ValueError(
            f"{data} {'has no annotations in COCO format' if data.is_dir() else 'does not exist'}: give a "
            "folder with images/ and train.json, val.json, or annotations.json; or COCO's own, with "
            "annotations/ and train2017/"
        )
    return files


def _named_after(instances: Path, split: str) -> bool:
    return instances.stem.removeprefix("instances_").lower().startswith(SPLIT_NAMES[split])


def _image_folders(data: Path, split: str, file: Path) -> list[Path]:
    """Folders that file names may be relative to, likeliest first. For annotations/instances_train2017.json,
    train2017/ or images/train2017/; Label Studio's names start with images/."""
    if file.name == _ROBOFLOW:
        return [file.parent]
    year = file.stem.removeprefix("instances_")
    own = [data / year, data / "images" / year] if file.parent != data else []
    return [*(folder for folder in own if folder.is_dir()), image_folder(data, split), data, file.parent]


def _folder_of(images: Sequence[dict[str, Any]], folders: Sequence[Path]) -> Path:
    """The folder that most of the first images lie in; the first of equals."""
    names = [image["file_name"] for image in images[:100]]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names))


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask, H W: {"size": [H, W], "counts": text}."""
    from faster_coco_eval.core import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def _read_split(
    file: Path, folders: Sequence[Path], masks: bool, classes: list[str] | None
) -> tuple[CocoSplit, list[str]]:
    """A split without the annotations that are wrong, and what is wrong with them."""
    content = _read_json(file)
    raise_problems(file, [*category_problems(content["categories"]), *image_problems(content["images"])])
    labels, classes = _labels(file, _without_roots(content), classes)
    by_id = {
        image["id"]: {**image, "width": int(image["width"]), "height": int(image["height"])}
        for image in content["images"]
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
    images = [
        CocoImage(number, image["file_name"], image["width"], image["height"], tuple(boxes[number]))
        for number, image in by_id.items()
    ]
    return CocoSplit(_folder_of(content["images"], folders), images, classes), problems


def _without_roots(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Categories without those that only stand above others, as Roboflow's first: no annotation has them."""
    numbers = [annotation.get("category_id") for annotation in content["annotations"]]
    used = {number for number in numbers if is_id(number)}

    def is_root(category: dict[str, Any]) -> bool:
        others = [other for other in content["categories"] if other is not category]
        return category["id"] not in used and category["name"] in [o.get("supercategory") for o in others]

    return [category for category in content["categories"] if not is_root(category)]


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
        None if annotation.get("area") is None else float(annotation["area"]),
        bool(annotation.get("iscrowd")),
        annotation.get("segmentation"),
    )


def _check_images(split: CocoSplit, file: Path, check: CheckImages, skip: bool) -> CocoSplit:
    def problem(position: int) -> str | None:
        image = split.images[position]
        reason = image_problem(split.folder / image.name, check)
        return None if reason is None else f"image {image.id}: {reason}"

    return leave_out(split, list(in_threads(problem, len(split), "checking images")), file, skip)


def _check_sizes(split: CocoSplit, file: Path) -> None:
    def problem(position: int) -> str | None:
        image = split.images[position]
        reason = size_problem(split.folder / image.name, (image.width, image.height))
        return None if reason is None else f"image {image.id}: {reason}"

    results = in_threads(problem, len(split), "checking sizes")
    raise_problems(file, [reason for reason in results if reason is not None])


def _turn_upright(split: CocoSplit, exif: Exif | None) -> CocoSplit:
    """The split with its boxes on upright images."""
    paths = [split.folder / image.name for image in split.images]
    turns = annotation_turns(paths, [(image.width, image.height) for image in split.images], exif)
    return replace(
        split,
        images=[
            image if turn == 1 else _turned(image, turn)
            for image, turn in zip(split.images, turns, strict=True)
        ],
    )


def _turned(image: CocoImage, turn: int) -> CocoImage:
    size = (image.width, image.height)
    boxes = tuple(replace(box, corners=turn_corners(box.corners, size, turn)) for box in image.boxes)
    width, height = turn_size(size, turn)
    return replace(image, width=width, height=height, boxes=boxes, turn=turn)
