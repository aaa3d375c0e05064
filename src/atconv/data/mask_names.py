"""What names of folders and files say: an image, or a mask."""

from __future__ import annotations

import re

__all__ = ["find_ending", "is_image_ending", "names_images", "names_masks", "rank", "words"]

# Where an image has masks of several endings, the first of these is taken.
_MASK_ENDINGS = (
    "labeltrainids", "labelids", "mask", "masks", "label", "labels", "gt", "gtfine", "seg", "segmentation",
    "annotation", "annot", "groundtruth", "target", "trimap", "manual", "l", "gtcoarse", "color",
    "instanceids",
)  # fmt: skip
_IMAGE_ENDINGS = {"leftimg8bit", "sat", "image", "img", "rgb", "input", "original"}
_ENDING = re.compile(rf"(?:[\W_](?:{'|'.join((*_MASK_ENDINGS, *_IMAGE_ENDINGS))}))+$", re.IGNORECASE)
# Coarse masks, colors and instances lie next to what is meant; "l" alone says little.
_MASKS = {
    *_MASK_ENDINGS[:-4], "annotations", "targets", "trimaps", "segmentations", "segmentationclass", "segs",
    "semantic", "truth",
}  # fmt: skip
_IMAGES = {*_IMAGE_ENDINGS, "images", "imgs", "jpegimages", "photos", "inputs", "pictures", "frames"}
_SPLIT_BEFORE = re.compile(r"^(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?|dev)(?=[a-z])")


def words(name: str) -> set[str]:
    """The words of a path in lower case; trainannot has two."""
    parts = (_SPLIT_BEFORE.sub(r"\1 ", part) for part in re.split(r"[\W_]+", name.lower()))
    return {word for part in parts for word in part.split()}


def names_masks(name: str | set[str]) -> bool:
    return not _MASKS.isdisjoint(words(name) if isinstance(name, str) else name)


def names_images(name: str) -> bool:
    return not _IMAGES.isdisjoint(words(name))


def find_ending(stem: str) -> str:
    """The usual ending of a stem, such as _gtFine_labelIds, or ""."""
    found = _ENDING.search(stem)
    return found[0] if found else ""


def is_image_ending(ending: str) -> bool:
    return words(ending) <= _IMAGE_ENDINGS


def rank(ending: str) -> int:
    """How far an ending is from the one that is preferred; no ending comes first."""
    last = re.split(r"[\W_]+", ending.lower())[-1]
    return _MASK_ENDINGS.index(last) if last in _MASK_ENDINGS else -1
