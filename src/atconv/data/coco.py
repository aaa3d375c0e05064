"""Boxes and instance masks in COCO's format, checked before anything is trained on them.

    DATA/images/SIDE/…, or DATA/images/…      pictures
    DATA/train.json, val.json, test.json      one COCO file a side; val and test may be missing
    DATA/annotations.json                     instead, where there are no sides

or as COCO itself comes: DATA/annotations/instances_train2017.json beside DATA/train2017/; or as Roboflow
exports it: DATA/train/_annotations.coco.json among the pictures. val may be called valid or validation,
train training.

Category ids may be any numbers; labels count the categories from 1, in the order of their ids.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from atconv.data.annotated import choose_side, first_few, image_folder, picture_problem, raise_problems
from atconv.data.checking import in_threads
from atconv.data.images import Mode, read_image
from atconv.data.splits import SPLIT_NAMES, SPLITS

__all__ = ["BadAnnotations", "Box", "CocoSplit", "decode_mask", "encode_mask", "open_coco"]

BadAnnotations = Literal["refuse", "skip"]

_SLACK = 1.0  # pixels that a box may reach over its image: annotations are rounded

_TOO_LARGE = 1e9  # pixels; and what floats of 32 bits still tell apart

_MENDED = "mend it or remove it"

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
    """in pixels, where it is told"""
    crowd: bool
    """stands for many objects; not trained on, and no detection inside it counts as wrong"""
    segmentation: Any = None
    """COCO's: polygons or run lengths"""


@dataclass(frozen=True)
class Annotated:
    """One picture."""

    id: int
    name: str
    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class CocoSplit:
    """The pictures of one side."""

    folder: Path
    images: Sequence[Annotated]
    classes: list[str]
    """labels count them from 1"""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        return [image.name for image in self.images]

    @property
    def digest(self) -> str:
        """Of all that the file says of these pictures."""
        return hashlib.sha256(repr((self.classes, list(self.images))).encode()).hexdigest()

    def read(self, position: int, mode: Mode) -> Image.Image:
        return read_image(self.folder / self.images[position].name, mode)

    @property
    def objects(self) -> int:
        """How many boxes stand for one object, in all pictures."""
        return sum(not box.crowd for image in self.images for box in image.boxes)

    def size(self, position: int) -> tuple[int, int]:
        image = self.images[position]
        return image.height, image.width

    def take(self, positions: Sequence[int]) -> CocoSplit:
        """Some of its pictures."""
        return replace(self, images=[self.images[i] for i in positions])


def open_coco(
    data: str | Path,
    masks: bool,
    console: Console,
    check_images: Literal["decode", "header", "none"] = "decode",
    classes: list[str] | None = None,
    split: str | None = None,
    bad_annotations: BadAnnotations = "refuse",
) -> dict[str, CocoSplit]:
    """The sides of a folder by name; a lone "train" is all there is.

    Args:
        data: the folder.
        masks: every box needs its mask.
        console: where progress shows.
        check_images: how picture files are checked: decode each, read its header, or not at all.
        classes: names that the categories must have; default: those of the first side.
        split: open one side alone, as `choose_side` names it; default: all.
        bad_annotations: "skip" leaves out those that are wrong, and says which.

    Raises:
        ValueError: no such folder or files, or annotations that are wrong: each is named.
    """
    data = Path(data)
    found = _annotation_files(data)
    if split is not None:
        name = choose_side(found, split, data)
        found = {name: found[name]}
    sides = {}
    for name, file in found.items():
        side, problems = _read_side(file, _picture_folder(data, name, file), masks, classes, console)
        if problems and bad_annotations == "refuse":
            raise ValueError(f"{file}: {first_few(problems)} (--bad_annotations skip leaves such out)")
        if problems:
            console.print(
                f"{file}: {len(problems)} annotations are left out: {first_few(problems)}", soft_wrap=True
            )
        _check_pictures(side, file, check_images, console)
        classes = classes or side.classes
        sides[name] = side
    return sides


def _annotation_files(data: Path) -> dict[str, Path]:
    """SIDE.json, in annotations/ too; or as COCO itself comes, annotations/instances_SIDE….json; or as
    Roboflow exports it; or annotations.json alone."""
    found: dict[str, Path] = {}
    for side in SPLITS:
        own = [data / folder / f"{name}.json" for name in SPLIT_NAMES[side] for folder in ("", "annotations")]
        own += [data / name / _ROBOFLOW for name in SPLIT_NAMES[side]]
        there = [file for file in own if file.is_file()]
        there += sorted((data / "annotations").glob(f"instances_{side}*.json"))
        if len(there) > 1:
            told = ", ".join(str(file.relative_to(data)) for file in there)
            raise ValueError(f"{data} has several annotation files for {side}: {told}; leave one")
        if there:
            found[side] = there[0]
    if not found and (data / "annotations.json").is_file():
        found = {"train": data / "annotations.json"}
    if not found:
        raise ValueError(
            f"{data} does not exist or has no annotations: give a folder with images/ and train.json, "
            "val.json (COCO's format), or annotations.json; or COCO's own, with annotations/ and train2017/"
        )
    return found


def _picture_folder(data: Path, side: str, file: Path) -> Path:
    """For annotations/instances_train2017.json, train2017/ or images/train2017/."""
    if file.name == _ROBOFLOW:
        return file.parent
    year = file.stem.removeprefix("instances_")
    own = [data / year, data / "images" / year] if file.parent != data else []
    return next((folder for folder in own if folder.is_dir()), image_folder(data, side))


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """What COCO's polygons or run lengths cover: H W of 0 and 1."""
    from faster_coco_eval.core import mask

    decoded = mask.decode(mask.segmToRle(segmentation, width, height))
    return decoded.reshape(height, width)


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask, H W: {"size": [H, W], "counts": text}."""
    from faster_coco_eval.core import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def _read_side(
    file: Path, folder: Path, masks: bool, classes: list[str] | None, console: Console
) -> tuple[CocoSplit, list[str]]:
    """A side without the annotations that are wrong, and what is wrong with them."""
    told = _read_json(file)
    raise_problems(file, [*_category_problems(told["categories"]), *_image_problems(told["images"])])
    categories = sorted(told["categories"], key=lambda category: category["id"])
    names = [str(category["name"]) for category in categories]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"{file}: it has no categories, or two of one name: {', '.join(names[:10])}")
    if classes is not None and set(names) - set(classes):
        unknown = ", ".join(sorted(set(names) - set(classes))[:5])
        raise ValueError(
            f"{file}: its categories {unknown} are not among the classes {', '.join(classes[:10])}"
        )
    order = classes or names
    labels = {category["id"]: 1 + order.index(str(category["name"])) for category in categories}
    by_id = {image["id"]: image for image in told["images"]}
    boxes: dict[Any, list[Box]] = {number: [] for number in by_id}
    problems = []
    annotations = told["annotations"]

    def problem(position: int) -> str | None:
        return _problem(annotations[position], by_id, labels, masks)

    results = in_threads(problem, len(annotations), console, "checking annotations")
    for annotation, name, wrong in zip(annotations, _names(annotations), results, strict=True):
        if wrong is None:
            boxes[annotation["image_id"]].append(_box(annotation, by_id, labels))
        else:
            problems.append(f"annotation {name}: {wrong}")
    images = [
        Annotated(number, image["file_name"], image["width"], image["height"], tuple(boxes[number]))
        for number, image in by_id.items()
    ]
    return CocoSplit(folder, images, list(order)), problems


def _read_json(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not readable JSON: {error}; write it again") from error
    for name, needed in (
        ("images", ("id", "file_name", "width", "height")),
        ("annotations", ()),
        ("categories", ("id", "name")),
    ):
        entries = told.get(name) if isinstance(told, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{file} has no list {name!r}: it is not an annotation file in COCO's format")
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(f"{file}: {name}, number {i + 1} is no object: {str(entry)[:40]}")
            missing = [n for n in needed if n not in entry]
            if missing:
                which = entry.get("id", f"number {i + 1}")
                raise ValueError(f"{file}: {name}, {which}: {', '.join(missing)} missing")
    if not told["images"]:
        raise ValueError(f"{file} lists no images")
    return told


def _category_problems(categories: Sequence[dict[str, Any]]) -> Iterator[str]:
    seen: set[Any] = set()
    for category in categories:
        number = category["id"]
        if not _is_id(number) or type(number) is not type(categories[0]["id"]):
            yield f"category {number!r}: ids must be whole numbers, or all of them names"
            continue
        if number in seen:
            yield f"category {number!r}: another category has this id"
        seen.add(number)


def _image_problems(images: Sequence[dict[str, Any]]) -> Iterator[str]:
    seen: dict[str, set[Any]] = {"id": set(), "file_name": set()}
    for image in images:
        if not _is_id(image["id"]) or not isinstance(image["file_name"], str):
            yield f"image {image['id']!r}: id must be a whole number or a name, file_name a name"
            continue
        for name, values in seen.items():
            if image[name] in values:
                yield f"image {image['id']}: another image has {name} {image[name]!r}"
            values.add(image[name])
        if not all(_is_whole(image[name], 1) for name in ("width", "height")):
            yield f"image {image['id']}: width and height must be whole numbers, at least 1"


def _names(annotations: Sequence[dict[str, Any]]) -> list[str]:
    """What to call each: by its id; by its place in the file where it has none of its own."""
    ids = [annotation.get("id") for annotation in annotations]
    counted = Counter(own for own in ids if _is_id(own))
    unique = [_is_id(own) and counted[own] == 1 for own in ids]
    return [str(own) if unique[i] else f"number {i + 1}" for i, own in enumerate(ids)]


def _problem(
    annotation: dict[str, Any], images: dict[Any, dict[str, Any]], labels: dict[Any, int], masks: bool
) -> str | None:
    """What is wrong with an annotation."""
    missing = [name for name in ("image_id", "category_id", "bbox") if name not in annotation]
    if missing:
        return f"{', '.join(missing)} missing: {_MENDED}"
    of, kind = annotation["image_id"], annotation["category_id"]
    image = images.get(of) if _is_id(of) else None
    if image is None:
        return f"no image has the id {of}: {_MENDED}"
    if not _is_id(kind) or kind not in labels:
        known = ", ".join(map(repr, list(labels)[:10]))
        return f"no category has the id {kind!r} (there are {known}): {_MENDED}"
    if not _is_number(annotation.get("area", 0)) or annotation.get("iscrowd", 0) not in (0, 1):
        return f"its area must be a number and its iscrowd 0 or 1: {_MENDED}"
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"its box is {box}: give left, top, width, height in pixels"
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return f"its box {box} has no extent: {_MENDED}"
    if (
        min(left, top) < -_SLACK
        or left + width > image["width"] + _SLACK
        or top + height > image["height"] + _SLACK
        or left >= image["width"]
        or top >= image["height"]
    ):
        size = f"{image['width']} × {image['height']}"
        return f"its box {box} reaches out of its image of {size} pixels: {_MENDED}"
    corners = np.array(_corners(box, image), dtype=np.float32)  # what the detector sees
    if (corners[:2] >= corners[2:]).any():
        return f"nothing of its box {box} lies in its image: {_MENDED}"
    return _mask_problem(annotation.get("segmentation"), corners, image) if masks else None


def _mask_problem(segmentation: Any, corners: NDArray[np.float32], image: dict[str, Any]) -> str | None:
    if isinstance(segmentation, dict):
        size = [image["height"], image["width"]]
        if segmentation.get("size") != size or "counts" not in segmentation:
            return (
                f"its run lengths are of the size {segmentation.get('size')}, its image of {size}: {_MENDED}"
            )
        if isinstance(segmentation["counts"], list):
            wrong = _runs_problem(segmentation["counts"], size)
            if wrong is not None:
                return wrong
        return _cover_problem(segmentation, corners, image)
    if not segmentation or not isinstance(segmentation, list):
        return "it has no segmentation, which masks need: give polygons or run lengths"
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(_is_number(value) for value in polygon):
            return "its segmentation is no list of polygons: give lists of x, y, x, y, …"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon of {len(polygon)} numbers: three points or more are needed, x, y of each"
        for values, side in ((polygon[0::2], image["width"]), (polygon[1::2], image["height"])):
            # Before it is drawn: that takes memory for every pixel between its points.
            if min(values) < -_SLACK or max(values) > side + _SLACK:
                extent = f"{image['width']} × {image['height']}"
                return f"a polygon reaches out of its image of {extent} pixels: {_MENDED}"
    return _cover_problem(segmentation, corners, image)


def _runs_problem(counts: list[Any], size: list[int]) -> str | None:
    if not all(_is_whole(run, 0) for run in counts):
        return f"its run lengths are not whole numbers from 0 on: {_MENDED}"
    if sum(counts) != size[0] * size[1]:
        return f"its run lengths add up to {sum(counts)}, not to {size[0]} × {size[1]}: {_MENDED}"
    return None


def _cover_problem(segmentation: Any, corners: NDArray[np.float32], image: dict[str, Any]) -> str | None:
    try:
        covered = decode_mask(segmentation, image["height"], image["width"])
    except Exception:  # whatever the decoder raises
        return f"its segmentation cannot be decoded: {_MENDED}"
    if not covered.any():
        return f"its segmentation covers no pixel: {_MENDED}"
    (left, top), (right, bottom) = np.floor(corners[:2]).astype(int), np.ceil(corners[2:]).astype(int)
    if not covered[top:bottom, left:right].any():
        return f"its segmentation lies outside its box: {_MENDED}"
    return None


def _corners(box: Sequence[float], image: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, cut at the border of the image."""
    left, top, width, height = map(float, box)
    return (
        max(0.0, left),
        max(0.0, top),
        min(left + width, float(image["width"])),
        min(top + height, float(image["height"])),
    )


def _box(annotation: dict[str, Any], images: dict[Any, dict[str, Any]], labels: dict[Any, int]) -> Box:
    return Box(
        annotation.get("id", 0),
        labels[annotation["category_id"]],
        _corners(annotation["bbox"], images[annotation["image_id"]]),
        float(annotation["area"]) if "area" in annotation else None,
        bool(annotation.get("iscrowd", 0)),
        annotation.get("segmentation"),
    )


def _check_pictures(side: CocoSplit, file: Path, how: str, console: Console) -> None:
    def problem(position: int) -> str | None:
        image = side.images[position]
        wrong = picture_problem(side.folder / image.name, how, (image.width, image.height))
        return None if wrong is None else f"image {image.id}: {wrong}"

    results = in_threads(problem, len(side), console, "checking images")
    raise_problems(file, [wrong for wrong in results if wrong is not None])


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) < _TOO_LARGE  # false for NaN too
