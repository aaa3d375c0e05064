"""Boxes and polygons in YOLO's format: a text file for each image, a line for each object.

    DATA/data.yaml                     names, and where the images of each split lie; may be missing
    DATA/images/SPLIT/…, or images/…   images
    DATA/labels/SPLIT/…, or labels/…   x.txt for x.jpg: class x_center y_center width height,
                                       or class x y x y x y …, as shares of the image

or DATA/SPLIT/images/ and DATA/SPLIT/labels/, as Roboflow exports it; or x.txt next to x.jpg. Splits may be
lists of images, train.txt and val.txt. Without data.yaml, classes.txt or obj.names names the classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atconv.data.arrays import SharedItems
from atconv.data.boxes.reading import box_problem, clip_corners, read_lines
from atconv.data.boxes.split import BadAnnotations, Box, BoxImage, BoxSplit, check_classes, report_bad
from atconv.data.boxes.yolo_files import (
    MAX_CLASSES,
    class_names,
    find_config,
    find_images,
    find_sources,
    label_files,
    stray_labels,
)
from atconv.data.unreadable import in_threads
from atconv.io import count_of

__all__ = ["read_yolo"]

logger = logging.getLogger(__name__)

_SLACK = 0.01  # of the image that an object may reach over it: annotations are rounded
_ROUNDING = 1e-6


@dataclass(frozen=True)
class _LabelFile:
    """What a label file holds."""

    state: str
    """full, empty, missing or unreadable"""
    boxes: list[Box] = field(default_factory=list)
    """their labels are class numbers"""
    problems: list[str] = field(default_factory=list)


def read_yolo(
    data: Path,
    split: str,
    classes: Sequence[str] | None,
    images: Path | None,
    masks: bool,
    bad_annotations: BadAnnotations,
) -> BoxSplit:
    """A split without the annotations that are wrong. Arguments and errors are as in `read_coco`; boxes are
    in 0 … 1, since files do not say how large images are. An image without a label file has nothing in it."""
    config = find_config(data)
    where, names = class_names(data, config)
    keypoints = _keypoints(config[1]) if config else 0
    sources, remarks = find_sources(data, images)
    pairs = label_files(find_images(sources[split], data, images), data, images)
    count = MAX_CLASSES if names is None else len(names)
    results = in_threads(
        lambda i: _read_labels(pairs[i][1], data, count, masks, keypoints), len(pairs), "reading labels"
    )
    labels = list(results)
    if names is None:
        highest = max((box.label for each in labels for box in each.boxes), default=0)
        names = [str(number) for number in range(max(highest + 1, len(classes or ())))]
        remarks.append(
            f"{data} has no data.yaml, classes.txt or obj.names: classes are called 0 … {names[-1]}"
        )
    classes = check_classes(where, names, classes)
    for remark in remarks if split == "train" else []:
        logger.warning(remark)
    root, numbers = images or data, [1 + classes.index(name) for name in names]
    files = [_relative(path, root) for path, _ in pairs]
    bad = [(file, problem) for file, each in zip(files, labels, strict=True) for problem in each.problems]
    report_bad(where, bad, bad_annotations)
    _log_unlabeled(f"{split} split of {data}", pairs, labels)
    items = [
        BoxImage(name, name, 0, 0, tuple(replace(box, label=numbers[box.label]) for box in each.boxes))
        for name, each in zip(files, labels, strict=True)
        if each.state != "unreadable"
    ]
    for path in stray_labels(pairs, split, sources, data, images):
        file = _relative(path.absolute(), root.absolute())
        items.append(BoxImage(file, file, 0, 0, missing=f"{path} has no image: add it, or remove this file"))
    return BoxSplit(where=where, folder=root, classes=classes, items=SharedItems(items), bad=bad)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _log_unlabeled(where: str, pairs: Sequence[tuple[Path, Path]], labels: Sequence[_LabelFile]) -> None:
    """Say how many images are background.

    Raises:
        ValueError: there are no images, or no image has a label file.
    """
    states = Counter(each.state for each in labels)
    if states["missing"] == len(pairs):
        looked = f", such as {pairs[0][1]}" if pairs else ""
        raise ValueError(f"{where}: none of {count_of(len(pairs), 'image')} has a label file{looked}")
    if states["missing"] or states["empty"]:
        logger.info(
            "%s: %s no label file, and %d an empty one: they are kept, with nothing to detect in them",
            where,
            count_of(states["missing"], "image has", "images have"),
            states["empty"],
        )


def _keypoints(content: dict[str, Any]) -> int:
    """Numbers of keypoints after each box, in data for poses; they are not used."""
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2 and all(type(value) is int for value in shape):
        return int(shape[0] * shape[1])
    return 0


def _read_labels(path: Path, data: Path, count: int, masks: bool, keypoints: int) -> _LabelFile:
    if not path.is_file():
        return _LabelFile("missing")
    try:
        lines = [(i, line) for i, line in enumerate(read_lines(path), 1) if line.strip()]
    except ValueError as error:
        return _LabelFile("unreadable", problems=[str(error)])
    name = path.relative_to(data) if path.is_relative_to(data) else path
    found = _LabelFile("full" if lines else "empty")
    for number, line in lines:
        try:
            found.boxes.append(_parse(line, number, count, masks, keypoints))
        except ValueError as error:
            found.problems.append(f"{name}, line {number}: {error}")
    return found


def _parse(line: str, number: int, count: int, masks: bool, keypoints: int) -> Box:
    """The object of a line, by its class number.

    Raises:
        ValueError: it is none.
    """
    texts = line.split()
    if keypoints and len(texts) == 5 + keypoints:
        texts = texts[:5]
    if len(texts) != 5 and (len(texts) < 7 or len(texts) % 2 == 0):
        raise ValueError(
            f"it has {count_of(len(texts), 'column')}: give 5, class x_center y_center width height, or a "
            "polygon, class x y x y x y …"
        )
    try:
        values = [float(text) for text in texts]
    except ValueError:
        raise ValueError(f"{line.strip()[:60]!r} are not all numbers") from None
    if not values[0].is_integer() or not 0 <= values[0] < count:
        raise ValueError(f"its class number {texts[0][:20]} is none of 0 … {count - 1}")
    given = " ".join(text[:12] for text in texts[1:9])
    if not all(-_SLACK <= value <= 1 + _SLACK for value in values[1:]):
        raise ValueError(
            f"its coordinates {given} must lie in 0 … 1, as shares of the image's width and height"
        )
    polygon = [min(max(value, 0.0), 1.0) for value in values[1:]] if len(values) > 5 else None
    if polygon is None:
        x, y, width, height = values[1:]
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        corners = (min(polygon[0::2]), min(polygon[1::2]), max(polygon[0::2]), max(polygon[1::2]))
    problem = box_problem(corners, (1, 1), _SLACK, given) or (_mask_problem(polygon) if masks else None)
    if problem:
        raise ValueError(problem)
    return Box(number, int(values[0]), clip_corners(corners, (1, 1)), None, False, polygon and [polygon])


def _mask_problem(polygon: list[float] | None) -> str | None:
    if polygon is None:
        return "it is a box, and masks need polygons: give class x y x y x y …, or train without masks"
    x, y = polygon[0::2], polygon[1::2]
    doubled = sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))
    return None if abs(doubled) > _ROUNDING**2 else "its polygon covers nothing: fix it or remove it"
