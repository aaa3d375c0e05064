"""What the image files of DATA are: unreadable, copies of each other, unlike the others."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atconv.data.folders import SPLITS
from atconv.data.images import Mode, opened_image, stored_geometry, upright
from atconv.data.unreadable import content_digest, in_threads

__all__ = ["KINDS", "Finding", "ImageFacts", "Images", "copies", "inspect_images", "unusual_images"]

KINDS = (
    "unreadable", "gray", "gray with alpha", "16-bit gray", "float", "palette", "color", "color with alpha",
    "CMYK",
)  # fmt: skip
"""of images, by their channels"""

_OF_MODE = {
    "1": 1,
    "L": 1,
    "LA": 2,
    "La": 2,
    "I": 3,
    "F": 4,
    "P": 5,
    "PA": 5,
    "RGBA": 7,
    "RGBa": 7,
    "CMYK": 8,
}
_UNUSUAL_SHAPE = 3.0  # times as wide or as high as usual
_UNUSUAL_KIND = 0.1  # share of the images that are of another kind than most


class Images(Protocol):
    """A split with labels, boxes or masks."""

    checkable: Any

    @property
    def classes(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def name(self, index: int, /) -> str: ...
    def encoded(self, index: int, /) -> bytes: ...
    def read(self, index: int, mode: Mode, /) -> Image.Image: ...


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at in one image of a split."""

    kind: str
    """one of `FINDINGS` of `atconv.data.checks.check`"""
    split: str
    file: str
    detail: str
    index: int | None = None
    """position of the image in its split, where it is known"""
    other: tuple[str, int] | None = None
    """split and position of the image that it is compared with"""
    boxes: tuple[tuple[float, ...], ...] = ()
    """left, top, right, bottom of the boxes that it is about, in 0 … 1"""

    def to_dict(self) -> dict[str, str]:
        """Plain values, for CSV."""
        return {"file": self.file, "split": self.split, "finding": self.kind, "detail": self.detail}


class _Facts(NamedTuple):
    reason: str | None = None
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    kind: int = 0
    digest: bytes = bytes(16)
    hash: bytes = bytes(8)


@dataclass
class ImageFacts:
    """What is known of the images of a split after each was decoded once: 42 bytes an image."""

    images: Images
    sizes: NDArray[np.int32] = field(init=False)
    """N 2, width and height as stored"""
    orientations: NDArray[np.uint8] = field(init=False)
    kinds: NDArray[np.uint8] = field(init=False)
    """positions in `KINDS`; 0 is unreadable"""
    digests: NDArray[np.uint64] = field(init=False)
    """N 2, of the files"""
    hashes: NDArray[np.uint8] = field(init=False)
    """N 8, a bit for each step of brightness between neighbors in 8 × 9 pixels"""

    def __post_init__(self) -> None:
        count = len(self.images)
        self.sizes, self.digests = np.zeros((count, 2), np.int32), np.zeros((count, 2), np.uint64)
        self.orientations, self.kinds = np.ones(count, np.uint8), np.zeros(count, np.uint8)
        self.hashes = np.zeros((count, 8), np.uint8)

    @property
    def readable(self) -> NDArray[np.int64]:
        """Positions of the images that can be decoded."""
        return np.flatnonzero(self.kinds)


def inspect_images(split: str, images: Images) -> tuple[ImageFacts, list[Finding]]:
    """Decode every image of a split once; what is unreadable is a finding."""
    facts, findings = ImageFacts(images), []
    describe: Callable[[int, str], str] = getattr(images, "describe", lambda index, reason: reason)
    for i, each in enumerate(in_threads(partial(_inspect, images), len(images), f"reading {split}")):
        if each.reason is not None:
            findings.append(Finding("unreadable", split, images.name(i), describe(i, each.reason), i))
            continue
        facts.sizes[i], facts.orientations[i], facts.kinds[i] = each.size, each.orientation, each.kind
        facts.digests[i] = np.frombuffer(each.digest, np.uint64)
        facts.hashes[i] = np.frombuffer(each.hash, np.uint8)
    return facts, findings


def _inspect(images: Images, index: int) -> _Facts:
    try:
        if not images.checkable:
            image = images.read(index, "RGB")
            pixels = np.asarray(image)
            gray = bool((pixels == pixels[..., :1]).all())
            return _facts(image.convert("L") if gray else image, content_digest(pixels.tobytes()))
        encoded = images.encoded(index)
        with opened_image(io.BytesIO(encoded)) as image:
            return _facts(image, content_digest(encoded))
    except FileNotFoundError as error:
        return _Facts(f"{error.filename} does not exist")
    except (OSError, ValueError) as error:
        return _Facts(str(error).partition("\n")[0])


def _facts(image: Image.Image, digest: bytes) -> _Facts:
    size, orientation = stored_geometry(image)
    kind = _OF_MODE.get(image.mode, 3 if image.mode.startswith("I;16") else 6)
    if "transparency" in image.info:
        kind = {1: 2, 6: 7}.get(kind, kind)
    small = np.asarray(upright(image, "L").resize((9, 8), Image.Resampling.BOX))
    steps = np.packbits(small[:, 1:] > small[:, :-1]).tobytes()
    return _Facts(None, size, orientation, kind, digest, steps)


def copies(facts: Mapping[str, ImageFacts], labels: Mapping[str, NDArray[Any]]) -> Iterator[Finding]:
    """Images whose file is that of another one, byte for byte; of several, all but one in the last split
    (test after val after train).

    Args:
        labels: of every image, by split, where images have labels in classes of the same numbers.
    """
    splits = [name for name in reversed(SPLITS) if name in facts]
    owner = [(name, int(i)) for name in splits for i in facts[name].readable]
    if not owner:
        return
    digests = np.concatenate([facts[name].digests[facts[name].readable] for name in splits])
    _, first, group = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    for position in np.flatnonzero(first[group.ravel()] != np.arange(len(owner))):
        (split, i), (other, j) = owner[position], owner[first[group.ravel()[position]]]
        kind = "copy" if split == other else "copy in another split"
        if labels and np.any(labels[split][i] != labels[other][j]):
            kind = "copy with another label"
        detail = f"same file as {other}/{facts[other].images.name(j)}"
        yield Finding(kind, split, facts[split].images.name(i), detail, i, (other, j))


def unusual_images(facts: Mapping[str, ImageFacts]) -> Iterator[Finding]:
    """Images of another shape or with other channels than most."""
    ratios = {name: _ratios(each) for name, each in facts.items()}
    everything = np.concatenate(list(ratios.values()))
    usual = float(np.exp2(np.nanmedian(everything))) if not np.isnan(everything).all() else 1.0
    kinds = sum(np.bincount(each.kinds, minlength=len(KINDS)) for each in facts.values())
    kinds = np.asarray(kinds)[1:]
    few = 1 + np.flatnonzero(kinds <= _UNUSUAL_KIND * kinds.sum())
    for name, each in facts.items():
        apart = np.abs(ratios[name] - np.log2(usual)) > np.log2(_UNUSUAL_SHAPE)
        for i in np.flatnonzero(apart):
            detail = f"{size_text(each.sizes[i])} pixels; most are {usual:.2g} times as wide as high"
            yield Finding("unusual shape", name, each.images.name(int(i)), detail, int(i))
        for i in np.flatnonzero(np.isin(each.kinds, few) & (each.kinds > 0)):
            detail = f"{KINDS[each.kinds[i]]}; most are {KINDS[1 + int(kinds.argmax())]}"
            yield Finding("unusual channels", name, each.images.name(int(i)), detail, int(i))


def _ratios(facts: ImageFacts) -> NDArray[np.float64]:
    """Binary logarithm of width by height, upright; NaN where images are unreadable."""
    ratios = np.full(len(facts.kinds), np.nan)
    sizes = facts.sizes[facts.readable].astype(np.float64)
    turned = np.where(facts.orientations[facts.readable] > 4, -1, 1)
    ratios[facts.readable] = turned * np.log2(sizes[:, 0] / sizes[:, 1])
    return ratios


def size_text(size: Sequence[int]) -> str:
    return f"{size[0]} × {size[1]}"
