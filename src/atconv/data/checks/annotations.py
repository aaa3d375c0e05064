"""What is wrong, or hardly meant, in boxes and masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from atconv.data.annotated import AnnotatedSplit
from atconv.data.boxes.split import BoxSplit
from atconv.data.checks.images import Finding, ImageFacts, size_text
from atconv.data.imbalance import Occurrences
from atconv.data.orientation import annotation_turn, turn_size
from atconv.data.unreadable import in_threads
from atconv.io import count_of, first_few

__all__ = ["inspect_annotations"]

_TINY = 4  # pixels
_TINY_SHARE = 0.001  # of the image
_SAME = 0.95  # intersection over union of boxes that stand for one object


def inspect_annotations(
    split: str, images: AnnotatedSplit, facts: ImageFacts
) -> tuple[Occurrences, list[Finding]]:
    """Look at the annotations of every image: how often classes occur, and the findings."""
    findings, counts = list(_bad(split, images)), []
    look = partial(_look_at, split, images, facts)
    for count, found in in_threads(look, len(images), f"reading annotations of {split}"):
        counts.append(count)
        findings += found
    unit = "box" if isinstance(images, BoxSplit) else "image"
    return Occurrences.of_counts(images.classes, counts, unit), findings


def _bad(split: str, images: AnnotatedSplit) -> Iterator[Finding]:
    """Annotations that readers leave out."""
    bad = images.bad if isinstance(images, BoxSplit) else ()
    wanted = {name for name, _ in bad}
    positions = {name: i for i, name in enumerate(images.names) if name in wanted} if wanted else {}
    for name, problem in bad:
        yield Finding("wrong annotation", split, name or str(images.where), problem, positions.get(name))


def _look_at(
    split: str, images: AnnotatedSplit, facts: ImageFacts, index: int
) -> tuple[Counter[int], list[Finding]]:
    """How often each class occurs in an image, and what is found there."""
    name = images.name(index)
    stored = (int(facts.sizes[index, 0]), int(facts.sizes[index, 1]))
    problems: list[tuple[str, str, NDArray[np.float64]]] = []
    none = np.zeros((0, 4))
    annotated, labels = None, Counter[int]()
    try:
        annotated, found, wrong = images.annotations(index, True)
        labels.update(found)
        if wrong is not None:
            problems.append(("wrong annotation", wrong, none))
    except FileNotFoundError:
        pass  # a mask without an image, which is unreadable
    except ValueError as error:
        problems.append(("wrong annotation", str(error), none))
    if facts.kinds[index]:
        orientation = int(facts.orientations[index])
        if annotation_turn(annotated, stored, orientation, None) is None:
            text = f"EXIF orientation {orientation}: see whether annotations lie on stored or upright pixels"
            problems.append(("unclear orientation", text, none))
        if annotated is not None and annotated not in (stored, turn_size(stored, orientation)):
            text = f"{size_text(stored)} pixels, and its annotations are for {size_text(annotated)}"
            problems.append(("other size", text, none))
    if isinstance(images, BoxSplit):
        labels.update(box.label - 1 for box in images.items[index].boxes if not box.crowd)
        problems += _box_problems(images, index, annotated or stored)
    return labels, [
        Finding(kind, split, name, detail, index, None, tuple(map(tuple, boxes.tolist())))
        for kind, detail, boxes in problems
    ]


def _box_problems(
    images: BoxSplit, index: int, size: tuple[int, int]
) -> Iterator[tuple[str, str, NDArray[np.float64]]]:
    """Boxes that are tiny, and those that are there twice."""
    item = images.items[index]
    if not all(size):
        return
    scale = np.array([*size, *size], np.float64)
    single = [box for box in item.boxes if not box.crowd]
    corners = np.array([box.corners for box in single], np.float64).reshape(-1, 4)
    shares = corners / scale if item.width else corners
    extents = (shares[:, 2:] - shares[:, :2]).clip(min=0)
    tiny = ((extents * scale[:2]).min(1) < _TINY) | (extents.prod(1) < _TINY_SHARE)
    if tiny.any():
        smallest = extents[extents.prod(1).argmin()] * scale[:2]
        text = (
            f"{tiny.sum()} of {count_of(len(single), 'box', 'boxes')}, the smallest "
            f"{smallest[0]:.3g} × {smallest[1]:.3g} pixels in {size_text(size)}"
        )
        yield "tiny box", text, shares[tiny]
    twice = _twice(shares)
    if len(twice):
        names = [sorted(images.classes[single[i].label - 1] for i in pair) for pair in twice]
        pairs = sorted({a if a == b else f"{a} and {b}" for a, b in names})
        text = f"{count_of(len(twice), 'pair')} of boxes in one place: {first_few(pairs)}"
        yield "box twice", text, shares[twice[:, 0]]


def _twice(boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pairs of boxes, N 4, that nearly are the same."""
    pairs = []
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1)
    for i in range(len(boxes) - 1):  # a row at a time: images may have thousands of boxes
        low, high = np.maximum(boxes[i, :2], boxes[i + 1 :, :2]), np.minimum(boxes[i, 2:], boxes[i + 1 :, 2:])
        shared = (high - low).clip(min=0).prod(1)
        same = shared > _SAME * (areas[i] + areas[i + 1 :] - shared)
        pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(same)]
    return np.array(pairs, np.int64).reshape(-1, 2)
