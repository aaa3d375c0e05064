"""What may be wrong with the entries of a COCO file, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atconv.data.boxes.reading import FIX, PIXEL_SLACK, TOO_LARGE, as_seen, box_problem, leads_outside
from atconv.data.boxes.split import decode_mask

__all__ = [
    "annotation_problem",
    "category_problems",
    "corners_of",
    "image_problems",
    "is_id",
    "leaves_folder",
]

_MAX_PIXELS = 2 * 89_478_485  # Pillow opens no larger image, and its masks would fill memory


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
        width, height = (_integer(image[name]) for name in ("width", "height"))
        if not _is_whole(width, 1) or not _is_whole(height, 1) or width * height > _MAX_PIXELS:
            yield (
                f"image {image['id']}: width and height must be whole numbers, at least 1 and of at most "
                f"{_MAX_PIXELS:,} pixels"
            )


def leaves_folder(image: dict[str, Any], folder: Path, data: Path, images: Path | None) -> str | None:
    """Whether an image lies outside DATA, or outside the folder of images where that is given."""
    name, root = image["file_name"], images or data
    if not leads_outside(name, folder, root):
        return None
    fix = "" if images else ", or the folder that holds all with --images"
    return f"image {image['id']}: its file_name {name!r} leads out of {root}: give a path inside it{fix}"


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
        return f"{', '.join(missing)} missing: {FIX}"
    image_id, category_id = annotation["image_id"], annotation["category_id"]
    image = images.get(image_id) if is_id(image_id) else None
    if image is None:
        return f"no image has the id {image_id}: {FIX}"
    if not is_id(category_id) or category_id not in labels:
        known = ", ".join(map(repr, list(labels)[:10]))
        return f"no category has the id {category_id!r} (there are {known}): {FIX}"
    area, crowd = annotation.get("area"), annotation.get("iscrowd")
    if not (area is None or _is_number(area)) or crowd not in (None, 0, 1):
        return f"its area must be a number and its iscrowd 0 or 1: {FIX}"
    problem = _box_problem(annotation["bbox"], image)
    if problem is None and masks:
        problem = _mask_problem(annotation.get("segmentation"), annotation["bbox"], image)
    return problem


def _box_problem(box: Any, image: dict[str, Any]) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"its box is {box}: give left, top, width, height in pixels"
    return box_problem(corners_of(box), (image["width"], image["height"]), PIXEL_SLACK, str(box))


def _mask_problem(segmentation: Any, box: Sequence[float], image: dict[str, Any]) -> str | None:
    if isinstance(segmentation, dict):
        problem = _runs_problem(segmentation, [image["height"], image["width"]])
    else:
        problem = _polygons_problem(segmentation, image)
    return problem or _coverage_problem(segmentation, box, image)


def _runs_problem(segmentation: dict[str, Any], size: list[int]) -> str | None:
    if segmentation.get("size") != size or "counts" not in segmentation:
        return f"its run lengths are of the size {segmentation.get('size')}, its image of {size}: {FIX}"
    counts = segmentation["counts"]
    if not isinstance(counts, list):
        return None
    if not all(_is_whole(run, 0) for run in counts):
        return f"its run lengths are not whole numbers from 0 on: {FIX}"
    if sum(counts) != size[0] * size[1]:
        return f"its run lengths add up to {sum(counts)}, not to {size[0]} × {size[1]}: {FIX}"
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
            if min(values) < -PIXEL_SLACK or max(values) > size + PIXEL_SLACK:
                extent = f"{image['width']} × {image['height']} pixels"
                return f"a polygon reaches out of its image of {extent}: {FIX}"
    return None


def _coverage_problem(segmentation: Any, box: Sequence[float], image: dict[str, Any]) -> str | None:
    try:
        mask = decode_mask(segmentation, image["height"], image["width"])
    except ImportError:
        raise
    except Exception:  # whatever the decoder raises
        return f"its segmentation cannot be decoded: {FIX}"
    if not mask.any():
        return f"its segmentation covers no pixel: {FIX}"
    corners = as_seen(corners_of(box), (image["width"], image["height"]))
    (left, top), (right, bottom) = np.floor(corners[:2]).astype(int), np.ceil(corners[2:]).astype(int)
    if not mask[top:bottom, left:right].any():
        return f"its segmentation lies outside its box: {FIX}"
    return None


def corners_of(box: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of COCO's left, top, width, height."""
    left, top, width, height = map(float, box)
    return left, top, left + width, top + height


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
    return abs(value) < TOO_LARGE  # false for NaN too
