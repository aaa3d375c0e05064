"""What may be wrong with the entries of a COCO file, in words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atconv.data.boxes import decode_mask

__all__ = [
    "annotation_problem",
    "category_problems",
    "clip_box",
    "image_problems",
    "is_id",
    "leaves_folder",
]

_SLACK = 1.0  # pixels that a box may reach over its image: annotations are rounded

_TOO_LARGE = 1e9  # pixels; 32-bit floats still represent them

_FIX = "fix it or remove it"


def category_problems(categories: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with each category."""
    seen: set[Any] = set()
    for category in categories:
        number = category["id"]
        if not is_id(number) or type(number) is not type(categories[0]["id"]):
            yield f"category {number!r}: ids must be whole numbers, or all of them names"
            continue
        if number in seen:
            yield f"category {number!r}: another category has this id"
        seen.add(number)


def image_problems(images: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the entry of each image."""
    seen: dict[str, set[Any]] = {"id": set(), "file_name": set()}
    for image in images:
        if not is_id(image["id"]) or not isinstance(image["file_name"], str):
            yield f"image {image['id']!r}: id must be a whole number or a name, file_name a name"
            continue
        for name, values in seen.items():
            if image[name] in values:
                yield f"image {image['id']}: another image has {name} {image[name]!r}"
            values.add(image[name])
        if not all(_is_whole(_integer(image[name]), 1) for name in ("width", "height")):
            yield f"image {image['id']}: width and height must be whole numbers, at least 1"


def leaves_folder(image: dict[str, Any], folder: Path, root: Path | None) -> str | None:
    """Whether an image lies outside the folder of images, or outside `root` if that is given."""
    name = image["file_name"]
    inside = not os.path.isabs(name) and not PureWindowsPath(name).drive
    if inside and ".." not in re.split(r"[/\\]", name):
        return None
    if root is not None and (folder / name).resolve().is_relative_to(root.resolve()):
        return None
    fix = (
        "give a path inside it"
        if root
        else "give a path inside it, or the folder that holds all with --images"
    )
    return f"image {image['id']}: its file_name {name!r} leaves the folder of images, {root or folder}: {fix}"


def annotation_problem(
    annotation: dict[str, Any], images: dict[Any, dict[str, Any]], labels: dict[Any, int], masks: bool
) -> str | None:
    """What is wrong with an annotation, or None.

    Args:
        images: by id.
        labels: by category id.
        masks: it needs a segmentation.
    """
    missing = [name for name in ("image_id", "category_id", "bbox") if name not in annotation]
    if missing:
        return f"{', '.join(missing)} missing: {_FIX}"
    image_id, category_id = annotation["image_id"], annotation["category_id"]
    image = images.get(image_id) if is_id(image_id) else None
    if image is None:
        return f"no image has the id {image_id}: {_FIX}"
    if not is_id(category_id) or category_id not in labels:
        known = ", ".join(map(repr, list(labels)[:10]))
        return f"no category has the id {category_id!r} (there are {known}): {_FIX}"
    area, crowd = annotation.get("area"), annotation.get("iscrowd")
    if not (area is None or _is_number(area)) or crowd not in (None, 0, 1):
        return f"its area must be a number and its iscrowd 0 or 1: {_FIX}"
    problem = _box_problem(annotation["bbox"], image)
    if problem is None and masks:
        problem = _mask_problem(annotation.get("segmentation"), annotation["bbox"], image)
    return problem


def _box_problem(box: Any, image: dict[str, Any]) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"its box is {box}: give left, top, width, height in pixels"
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return f"its box {box} has no extent: {_FIX}"
    if (
        min(left, top) < -_SLACK
        or left + width > image["width"] + _SLACK
        or top + height > image["height"] + _SLACK
        or left >= image["width"]
        or top >= image["height"]
    ):
        return f"its box {box} reaches out of its image of {_extent(image)} pixels: {_FIX}"
    corners = _corners(box, image)
    if (corners[:2] >= corners[2:]).any():
        return f"nothing of its box {box} lies in its image: {_FIX}"
    return None


def _mask_problem(segmentation: Any, box: Sequence[float], image: dict[str, Any]) -> str | None:
    if isinstance(segmentation, dict):
        problem = _runs_problem(segmentation, [image["height"], image["width"]])
    else:
        problem = _polygons_problem(segmentation, image)
    return problem or _coverage_problem(segmentation, box, image)


def _runs_problem(segmentation: dict[str, Any], size: list[int]) -> str | None:
    if segmentation.get("size") != size or "counts" not in segmentation:
        return f"its run lengths are of the size {segmentation.get('size')}, its image of {size}: {_FIX}"
    counts = segmentation["counts"]
    if not isinstance(counts, list):
        return None
    if not all(_is_whole(run, 0) for run in counts):
        return f"its run lengths are not whole numbers from 0 on: {_FIX}"
    if sum(counts) != size[0] * size[1]:
        return f"its run lengths add up to {sum(counts)}, not to {size[0]} × {size[1]}: {_FIX}"
    return None


def _polygons_problem(polygons: Any, image: dict[str, Any]) -> str | None:
    if not polygons or not isinstance(polygons, list):
        return "it has no segmentation, which masks need: give polygons or run lengths"
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(_is_number(value) for value in polygon):
            return "its segmentation is no list of polygons: give lists of x, y, x, y, …"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon of {len(polygon)} numbers: three points or more are needed, x, y of each"
        for values, size in ((polygon[0::2], image["width"]), (polygon[1::2], image["height"])):
            # Before it is rasterized: that takes memory for every pixel between its points.
            if min(values) < -_SLACK or max(values) > size + _SLACK:
                return f"a polygon reaches out of its image of {_extent(image)} pixels: {_FIX}"
    return None


def _coverage_problem(segmentation: Any, box: Sequence[float], image: dict[str, Any]) -> str | None:
    try:
        mask = decode_mask(segmentation, image["height"], image["width"])
    except ImportError:
        raise
    except Exception:  # whatever the decoder raises
        return f"its segmentation cannot be decoded: {_FIX}"
    if not mask.any():
        return f"its segmentation covers no pixel: {_FIX}"
    corners = _corners(box, image)
    (left, top), (right, bottom) = np.floor(corners[:2]).astype(int), np.ceil(corners[2:]).astype(int)
    if not mask[top:bottom, left:right].any():
        return f"its segmentation lies outside its box: {_FIX}"
    return None


def clip_box(box: Sequence[float], image: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of COCO's box, clipped to the image."""
    left, top, width, height = map(float, box)
    return (
        max(0.0, left),
        max(0.0, top),
        min(left + width, float(image["width"])),
        min(top + height, float(image["height"])),
    )


def _corners(box: Sequence[float], image: dict[str, Any]) -> NDArray[np.float32]:
    """As the detector sees them."""
    return np.array(clip_box(box, image), dtype=np.float32)


def _extent(image: dict[str, Any]) -> str:
    return f"{image['width']} × {image['height']}"


def is_id(value: Any) -> bool:
    """Whether it is a whole number or a name."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _integer(value: Any) -> Any:
    """64 for 64.0, which some tools write."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_whole(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) < _TOO_LARGE  # false for NaN too
