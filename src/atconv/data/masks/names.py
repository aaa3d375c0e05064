"""What names of folders and files say: an image, or a mask.

Images and masks of the same name differ in how it is written: 1_sat.jpg and 1_mask.png are written "*_sat"
and "*_mask", where * stands for what they have in common.
"""

from __future__ import annotations

import re

__all__ = ["common_part", "find_pattern", "is_image_pattern", "names_images", "names_masks", "rank", "words"]

# Where an image has masks of several patterns, the first of these is taken.
_MASK_WORDS = (
    "labeltrainids", "labelids", "mask", "masks", "label", "labels", "gt", "gtfine", "seg", "segmentation",
    "annotation", "annot", "groundtruth", "target", "trimap", "manual", "gtcoarse", "color", "instanceids",
)  # fmt: skip
_IMAGE_WORDS = {"leftimg8bit", "sat", "image", "img", "rgb", "input", "original"}
_WORD = rf"(?:{'|'.join((*_MASK_WORDS, *_IMAGE_WORDS))})"
_AFTER = re.compile(rf"(?:[\W_](?:{_WORD}|l))+$", re.IGNORECASE)  # CamVid's is _L
_BEFORE = re.compile(rf"^(?:{_WORD}[\W_]?)+(?=\d)", re.IGNORECASE)
# Coarse masks, colors and instances lie next to what is meant.
_MASKS = {
    *_MASK_WORDS[:-3], "annotations", "targets", "trimaps", "segmentations", "segmentationclass", "segs",
    "semantic", "truth",
}  # fmt: skip
_IMAGES = {*_IMAGE_WORDS, "images", "imgs", "jpegimages", "photos", "inputs", "pictures", "frames"}
_SPLIT_BEFORE = re.compile(r"^(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?|dev)(?=[a-z])")


def words(name: str) -> set[str]:
    """The words of a path in lower case; trainannot has two."""
    parts = (_SPLIT_BEFORE.sub(r"\1 ", part) for part in re.split(r"[\W_]+", name.lower()))
    return {word for part in parts for word in part.split()}


def names_masks(name: str) -> bool:
    return not _MASKS.isdisjoint(words(name))


def names_images(name: str) -> bool:
    return not _IMAGES.isdisjoint(words(name))


def find_pattern(stem: str) -> str:
    """How a stem is written, by its usual words: "*" where it has none."""
    before, after = _BEFORE.match(stem), _AFTER.search(stem)
    return f"{before[0] if before else ''}*{after[0] if after else ''}"


def is_image_pattern(pattern: str) -> bool:
    return words(pattern) <= _IMAGE_WORDS


def common_part(stem: str, pattern: str) -> str | None:
    """What * stands for in a stem; None where it is written otherwise."""
    before, after = pattern.split("*")
    if len(stem) > len(before) + len(after) and stem.startswith(before) and stem.endswith(after):
        return stem[len(before) : len(stem) - len(after)]
    return None


def rank(pattern: str) -> int:
    """How far a pattern is from the one that is preferred; "*" comes first."""
    found = [word for word in re.split(r"[\W_]+", pattern.lower()) if word in _MASK_WORDS]
    return _MASK_WORDS.index(found[-1]) if found else -1
