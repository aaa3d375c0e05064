"""Images that look alike: nearly the same in two splits, or of another class than all that are like them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atconv.data.checks.images import Finding, ImageFacts
from atconv.data.folders import SPLITS
from atconv.data.nearest import nearest_blocks

__all__ = ["Vectors", "hash_vectors", "look_same", "near_copies", "unit_vectors", "wrong_labels"]

Vectors = Mapping[str, NDArray[np.float16]]
"""a vector of length 1 for each readable image, by split"""

MAX_BITS = 6
"""by which hashes of near copies differ, of 64"""
_ALIKE = (
    0.98  # correlation; handwritten digits saved again as JPEG of quality 50 keep it, two digits seldom do
)
_BLOCK = 2048
_CANDIDATES = 5
_NEIGHBORS = 10
_MARGIN = 0.6  # share of the neighbors by which another class is ahead


def hash_vectors(facts: Mapping[str, ImageFacts]) -> Vectors:
    """Hashes as vectors, so that n bits of difference are a cosine similarity of 1 − n / 32."""
    return {
        name: (
            (np.unpackbits(each.hashes[each.readable], axis=1).astype(np.float16) - np.float16(0.5))
            / np.float16(4)
        )
        for name, each in facts.items()
    }


def unit_vectors(embeddings: Mapping[str, NDArray[np.float16]]) -> Vectors:
    """Embeddings around their mean, divided by their lengths: what all images share says nothing."""
    count = sum(map(len, embeddings.values()))
    mean = sum(each.sum(0, dtype=np.float64) for each in embeddings.values() if len(each)) / max(count, 1)
    units = {}
    for name, each in embeddings.items():
        units[name] = np.empty_like(each)
        for start in range(0, len(each), _BLOCK):
            rows = each[start : start + _BLOCK] - mean
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            units[name][start : start + _BLOCK] = rows / np.maximum(lengths, 1e-12)
    return units


def near_copies(
    facts: Mapping[str, ImageFacts],
    vectors: Vectors,
    min_similarity: float,
    confirm: Callable[[tuple[str, int], tuple[str, int]], bool] = lambda image, other: True,
) -> Iterator[Finding]:
    """Images that nearly are images of a later split, most alike first; of the same one where DATA has but
    one, since that will be split. Copies byte for byte are not among them.

    Args:
        confirm: whether two images, each a split and a position, look the same.
    """
    splits = [name for name in SPLITS if name in facts and len(vectors[name])]
    found = []
    for rank, name in enumerate(splits):
        others = splits[rank + 1 :] if len(splits) > 1 else splits
        owner = [(other, int(i)) for other in others for i in facts[other].readable]
        if not owner:
            continue
        keys = np.concatenate([vectors[other] for other in others])
        own, above = len(splits) == 1, min_similarity - 1e-4
        for start, similar, places in nearest_blocks(vectors[name], keys, _CANDIDATES, own, above):
            for row, column in zip(*np.nonzero(places >= 0), strict=True):
                image, other = (name, int(facts[name].readable[start + row])), owner[places[row, column]]
                found.append((float(similar[row, column]), image, other))
    taken: set[tuple[str, int]] = set()
    for similarity, image, other in sorted(found, key=lambda each: -each[0]):
        if image in taken or (other in taken and image[0] == other[0]) or _is_copy(facts, image, other):
            continue
        if confirm(image, other):
            taken.add(image)
            (split, i), (there, j) = image, other
            kind = "near copy" if split == there else "near copy in another split"
            detail = f"like {there}/{facts[there].images.name(j)} (similarity {similarity:.3f})"
            yield Finding(kind, split, facts[split].images.name(i), detail, i, other)


def _is_copy(facts: Mapping[str, ImageFacts], image: tuple[str, int], other: tuple[str, int]) -> bool:
    return bool((facts[image[0]].digests[image[1]] == facts[other[0]].digests[other[1]]).all())


def look_same(image: Image.Image, other: Image.Image) -> bool:
    """Whether two gray images are nearly the same at 32 × 32 pixels."""
    first, second = (
        np.asarray(each.resize((32, 32), Image.Resampling.BOX), np.float64) for each in (image, other)
    )
    if min(first.std(), second.std()) < 2:  # even surfaces have no pattern to compare
        return bool(np.abs(first - second).mean() < 2)
    return bool(np.corrcoef(first.ravel(), second.ravel())[0, 1] > _ALIKE)


class _Suspicion(NamedTuple):
    margin: float
    similarity: float
    position: int
    label: int
    votes: int
    nearest: int


def wrong_labels(
    facts: Mapping[str, ImageFacts],
    vectors: Vectors,
    labels: Mapping[str, NDArray[Any]],
    names: Sequence[str],
) -> Iterator[Finding]:
    """Images whose nearest neighbors, themselves left out, are of another class; most suspicious first.

    Args:
        labels: of every image, as numbers in `names`.
    """
    splits = [name for name in SPLITS if name in facts and len(vectors[name])]
    if not splits:
        return
    owner = [(name, int(i)) for name in splits for i in facts[name].readable]
    own = np.concatenate([labels[name][facts[name].readable] for name in splits])
    everything = np.concatenate([vectors[name] for name in splits])
    sizes = np.bincount(own, minlength=len(names))
    count = min(_NEIGHBORS, int(np.median(sizes[sizes > 0])) - 1)
    if count < 3:
        return
    found: list[_Suspicion] = []
    for start, similar, places in nearest_blocks(everything, everything, count, own=True):
        found += _suspicions(start, similar, own[places], places, own, 1 + count / 2 <= sizes)
    for each in sorted(found, reverse=True):
        split, i = owner[each.position]
        detail = (
            f"labeled {names[own[each.position]]}; {each.votes} of the {count} images most like it are "
            f"{names[each.label]}"
        )
        name = facts[split].images.name(i)
        yield Finding("likely wrong label", split, name, detail, i, owner[each.nearest])


def _suspicions(
    start: int,
    similar: NDArray[np.float32],
    votes: NDArray[np.int64],
    places: NDArray[np.int64],
    own: NDArray[np.int64],
    large: NDArray[np.bool_],
) -> Iterator[_Suspicion]:
    """Of a block of images; `votes` are the labels of their neighbors. Only images of `large`
    classes are looked at: others cannot have enough neighbors."""
    labels = own[start : start + len(votes)]
    agreeing = (votes[:, :, None] == votes[:, None]).sum(2)
    best = agreeing.argmax(1)
    rows = np.arange(len(votes))
    margins = (agreeing[rows, best] - (votes == labels[:, None]).sum(1)) / votes.shape[1]
    for row in np.flatnonzero((margins >= _MARGIN) & large[labels]):
        other = int(votes[row, best[row]])
        yield _Suspicion(
            float(margins[row]),
            float(similar[row].mean()),
            start + int(row),
            other,
            int(agreeing[row, best[row]]),
            int(places[row, votes[row] == other][0]),
        )
