"""A look at DATA of any format before training: what there is, and what a person should look at."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atconv.data.annotated import AnnotatedSplit
from atconv.data.checks.annotations import inspect_annotations
from atconv.data.checks.images import (
    KINDS,
    Finding,
    ImageFacts,
    Images,
    copies,
    inspect_images,
    unusual_images,
)
from atconv.data.checks.neighbors import (
    MAX_BITS,
    hash_vectors,
    look_same,
    near_copies,
    unit_vectors,
    wrong_labels,
)
from atconv.data.config import DataConfig, MaskOptions
from atconv.data.formats import AnnotatedFormat, open_sources, read_annotated, recognize
from atconv.data.imbalance import Occurrences
from atconv.engine.tables import Table
from atconv.io import first_few

__all__ = ["FINDINGS", "DataReport", "Embed", "check_data", "open_data"]

FINDINGS = {
    "unreadable": "Training leaves these out, up to --max-skipped. Replace or remove them.",
    "wrong annotation": "Boxes out of their image or without extent, classes that are none, masks that are "
    "missing or hold values that stand for no class.",
    "copy with another label": "One file under two classes: at least one label is wrong.",
    "copy in another split": "The same file in two splits, which makes the score of the later one too good. "
    "Training leaves the earlier one out.",
    "copy": "The same file twice in a split.",
    "near copy in another split": "Nearly the same image in two splits: saved again, resized, or taken a "
    "moment later.",
    "near copy": "Nearly the same image twice. Held out at random, they may come into two splits.",
    "likely wrong label": "The images most like these have another class, most suspicious first. Left, the "
    "image; right, the one most like it in that class.",
    "box twice": "Boxes that lie on each other, outlined.",
    "tiny box": "Boxes of less than 4 pixels, or less than a thousandth of the image, outlined.",
    "other size": "Annotations that are for an image of another size.",
    "unclear orientation": "Files that a viewer turns. Say with --exif what annotations belong to.",
    "unusual shape": "Three times as wide or as high as most: a square crop shows little of them.",
    "unusual channels": "Other channels than most. All are read, as color or as gray.",
}
"""what each kind is, in the order of the report"""

Embed = Callable[[str, Images, NDArray[np.int64]], NDArray[np.float16]]
"""(split, its images, positions of some) → a vector of each"""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataReport:
    """What a look at DATA has found."""

    data: str
    facts: Mapping[str, ImageFacts]
    occurrences: Mapping[str, Occurrences]
    """how often classes occur, by split"""
    findings: Sequence[Finding]

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind."""
        counts = Counter(finding.kind for finding in self.findings)
        return {kind: counts[kind] for kind in FINDINGS if counts[kind]}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the findings themselves are rows of CSV."""
        columns, *rows = self.table()[1], *self.table()[2]
        return {
            "data": self.data,
            "splits": [dict(zip(columns, row, strict=True)) for row in rows],
            "classes": {
                name: dict(zip(each.classes, each.totals.tolist(), strict=True))
                for name, each in self.occurrences.items()
            },
            "findings": self.counts,
        }

    def table(self) -> Table:
        """A row for each split: how many images, of which sizes and channels."""
        bad = Counter(finding.split for finding in self.findings if finding.kind == "unreadable")
        rows = [
            [name, str(len(each.readable) + bad[name]), str(bad[name]), *_sizes(each), _kinds(each)]
            for name, each in self.facts.items()
        ]
        columns = ("split", "images", "unreadable", "smallest", "median size", "largest", "channels")
        return Table(self.data, columns, rows)

    def lines(self) -> Iterator[str]:
        """One for each kind of finding: how many, and the first."""
        for kind, count in self.counts.items():
            files = [f"{f.split}/{f.file}" for f in self.findings if f.kind == kind]
            yield f"{kind}: {count}, {first_few(files, count=3)}"


def open_data(config: DataConfig, masks: MaskOptions) -> dict[str, Images]:
    """The splits of DATA of any format, with annotations as its files have them.

    Raises:
        ValueError: DATA is in no format that is read here, or its files of annotations are damaged.
    """
    found = recognize(Path(config.data))
    annotation = found.annotation if isinstance(found, AnnotatedFormat) else None
    if masks != MaskOptions() or annotation == "masks":
        masks.check_masks()
        return dict(read_annotated("masks", config.data, images=config.images, options=masks))
    if annotation == "boxes":
        own: dict[str, Any] = {"masks": False, "bad_annotations": "skip"}
        return dict(read_annotated("boxes", config.data, images=config.images, **own))
    return dict(open_sources(config))


def check_data(
    data: str, splits: Mapping[str, Images], min_similarity: float, embed: Embed | None = None
) -> DataReport:
    """Look at all images and annotations.

    Args:
        data: the name of DATA.
        splits: from `open_data`.
        min_similarity: cosine similarity of embeddings from which on two images are near copies.
        embed: gives embeddings; without it no wrong labels are found, and near copies by their hashes alone.
    """
    findings: list[Finding] = []
    facts: dict[str, ImageFacts] = {}
    occurrences: dict[str, Occurrences] = {}
    for name, images in splits.items():
        for remark in getattr(images, "remarks", ()):
            logger.warning(remark)
        facts[name], found = inspect_images(name, images)
        findings += found
        findings += [Finding("unreadable", name, *each) for each in getattr(images, "left_out", ())]
        if isinstance(images, AnnotatedSplit):
            occurrences[name], found = inspect_annotations(name, images, facts[name])
            findings += found
    classes, labels = _labels(splits)
    for name, own in labels.items():
        occurrences[name] = Occurrences.of_labels(classes, own)

    def confirm(image: tuple[str, int], other: tuple[str, int]) -> bool:
        return look_same(*(splits[split].read(i, "L") for split, i in (image, other)))

    alike = list(copies(facts, labels))
    _add_new(alike, near_copies(facts, hash_vectors(facts), 1 - MAX_BITS / 32, confirm))
    if embed is not None:
        vectors = unit_vectors({name: embed(name, splits[name], facts[name].readable) for name in splits})
        _add_new(alike, near_copies(facts, vectors, min_similarity))
        if labels and all(own.ndim == 1 for own in labels.values()):
            findings += wrong_labels(facts, vectors, labels, classes)
    return DataReport(data, facts, occurrences, [*findings, *alike, *unusual_images(facts)])


def _add_new(findings: list[Finding], more: Iterable[Finding]) -> None:
    """Add those of images that have none yet."""
    known = {(finding.split, finding.index) for finding in findings}
    findings += [finding for finding in more if (finding.split, finding.index) not in known]


def _labels(splits: Mapping[str, Images]) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """The classes of all splits, and the labels of every image as numbers in them, or as 0 and 1 for each;
    none where images have boxes or masks."""
    sources: dict[str, Any] = {name: s for name, s in splits.items() if not isinstance(s, AnnotatedSplit)}
    classes = list(dict.fromkeys(name for source in sources.values() for name in source.classes))
    for source in sources.values():
        source.relabel(classes)
    return classes, {name: source.labels for name, source in sources.items()}


def _sizes(facts: ImageFacts) -> list[str]:
    """The images of least, median and most pixels."""
    sizes = facts.sizes[facts.readable]
    ranked = sizes[np.argsort(sizes.prod(1, dtype=np.int64), kind="stable")]
    return [f"{w} × {h}" for w, h in ranked[[0, len(ranked) // 2, -1]]] if len(ranked) else [""] * 3


def _kinds(facts: ImageFacts) -> str:
    counts = np.bincount(facts.kinds, minlength=len(KINDS))
    ranked = np.argsort(-counts[1:], kind="stable") + 1
    return ", ".join(f"{counts[i]} {KINDS[i]}" for i in ranked if counts[i])
