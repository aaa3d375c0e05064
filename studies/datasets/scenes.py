"""Garment scenes: real garments that overlap, with exact boxes and masks.

python -m studies.datasets.scenes ROOT OUT [--train N] [--val N] [--test N] [--seed N]

A scene of 96 × 128 gray pixels shows one to three garments (Fashion-MNIST) of 36 to 60 pixels over clutter.
Each has its class (ten), its box and the mask of its visible pixels; a semantic mask has the kind of every
pixel: shirts, coats, pullovers and dresses are hard to tell apart even for people, and are of one kind.

Scene i of a split is a function of (seed, split, i) alone: `make_scene` says how. Training scenes are made of
nine tenths of Fashion-MNIST's training images, validation scenes of the last tenth, test scenes of its test
images.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from studies.datasets import run_command
from studies.datasets.garments import Garments, Pixels, load_garments, paste_fragments, scale

__all__ = ["HEIGHT", "KINDS", "WIDTH", "Scene", "build_garment_scenes", "load_split_garments", "make_scene"]

HEIGHT, WIDTH = 96, 128
KINDS = {
    "top-or-dress": ("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt"),
    "trousers": ("Trouser",),
    "shoe": ("Sandal", "Sneaker", "Ankle boot"),
    "bag": ("Bag",),
}
"""Fashion-MNIST's classes of each kind; masks number the kinds from 1, 0 is background"""

_SPLITS = ("train", "val", "test")
_MAX_GARMENTS = 3
_MIN_GARMENT, _MAX_GARMENT = 36, 60  # sizes in pixels
_FRAGMENTS, _FRAGMENT, _BRIGHTNESS = 12, 12, 0.5
_INK = 24  # darker pixels of a garment's image do not belong to the garment
_MIN_VISIBLE = 0.75  # share of each garment

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """One scene, and what it shows."""

    pixels: Pixels
    """H W"""
    classes: list[int]
    """of the garments, from the lowest to the uppermost"""
    masks: list[Mask]
    """for each garment its visible pixels, H W; none is empty, none overlaps another"""

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """left, top, width, height of each mask."""
        return [_box(mask) for mask in self.masks]


def make_scene(garments: Garments, seed: int, split: int, index: int) -> Scene:
    """Scene `index` of a split (0 train, 1 val, 2 test).

    Choices come from numpy's default_rng([seed, split, index]), in this order: twelve fragments of 12 × 12 at
    half brightness, cut from anywhere in any garment and pasted anywhere; how many garments, one to three,
    and the class of each; for each an image and a size of 36 to 60 pixels; positions, sampled together again
    until three quarters of each garment are visible. Later garments cover earlier ones.
    """
    rng = np.random.default_rng([seed, split, index])
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    paste_fragments(rng, pixels, garments.images, _FRAGMENTS, _FRAGMENT, _BRIGHTNESS)
    classes = [int(c) for c in rng.integers(0, len(garments.classes), rng.integers(1, _MAX_GARMENTS + 1))]
    images = []
    for label in classes:
        image = garments.images[rng.choice(np.flatnonzero(garments.labels == label))]
        images.append(scale(image, int(rng.integers(_MIN_GARMENT, _MAX_GARMENT + 1))))
    positions, masks = _sample_positions(rng, images)
    for image, position, mask in zip(images, positions, masks, strict=True):
        pixels[mask] = _framed(image, *position)[mask]
    return Scene(pixels, classes, masks)


def _sample_positions(
    rng: np.random.Generator, images: list[Pixels]
) -> tuple[list[NDArray[np.int64]], list[Mask]]:
    """Top and left of each image, and its visible pixels, sampled until enough of each is visible."""
    while True:
        positions = [rng.integers(0, [HEIGHT - len(i) + 1, WIDTH - len(i) + 1]) for i in images]
        full = [_framed(i > _INK, *position) for i, position in zip(images, positions, strict=True)]
        covered = [*accumulate(reversed(full), np.logical_or)][::-1]  # by each and those after it
        above = [*covered[1:], np.zeros_like(full[0])]
        visible = [own & ~over for own, over in zip(full, above, strict=True)]
        if all(part.sum() >= _MIN_VISIBLE * own.sum() for part, own in zip(visible, full, strict=True)):
            return positions, visible


def load_split_garments(data_root: Path, split: str) -> Garments:
    """The garments that scenes of a split are made of. Raises FileNotFoundError where there are none."""
    garments = load_garments(data_root, "test" if split == "test" else "train")
    if split == "test":
        return garments
    last_tenth = np.arange(len(garments.labels)) >= 0.9 * len(garments.labels)
    chosen = last_tenth if split == "val" else ~last_tenth
    return Garments(garments.images[chosen], garments.labels[chosen], garments.classes)


def build_garment_scenes(
    data_root: Path, out: Path, train: int = 4000, val: int = 200, test: int = 500, seed: int = 0
) -> Path:
    """Write a folder that `atconv detect train` and `atconv segment train` take.

        OUT/images/SPLIT/000000.png    the scenes
        OUT/SPLIT.json                 boxes and instance masks, COCO's format
        OUT/masks/SPLIT/000000.png     the kind of every pixel
        OUT/classes.txt                names of the kinds

    Args:
        data_root: what `python -m studies.datasets.fashion_mnist` wrote.
        out: folder to write; it must be new or empty.
        train: training scenes.
        val: validation scenes.
        test: test scenes.
        seed: of the scenes.

    Returns:
        the folder.

    Raises:
        FileNotFoundError: Fashion-MNIST is not there.
        ValueError: a count or the seed is too small, or the folder is not empty.
    """
    counts = (train, val, test)
    if min(counts) < 1 or seed < 0:
        raise ValueError(
            f"train, val and test must be at least 1 and seed at least 0, got {train}, {val}, {test}, {seed}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: remove it, or name another folder")
    garments = {split: load_split_garments(data_root, split) for split in _SPLITS}
    writing = out.with_name(f".writing-{out.name}")  # an interrupted call leaves nothing at `out`
    shutil.rmtree(writing, ignore_errors=True)
    for number, split in enumerate(_SPLITS):
        _write_split(garments[split], writing, split, number, counts[number], seed)
    (writing / "classes.txt").write_text("\n".join(["background", *KINDS]) + "\n")
    if out.exists():
        out.rmdir()
    writing.rename(out)
    return out


def _write_split(garments: Garments, out: Path, split: str, number: int, count: int, seed: int) -> None:
    kinds = np.array([_kind(name) for name in garments.classes], dtype=np.uint8)
    for folder in ("images", "masks"):
        (out / folder / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(count), desc=f"{split} scenes", disable=None, leave=False):
        scene = make_scene(garments, seed, number, index)
        name = f"{index:06d}.png"
        semantic = np.zeros_like(scene.pixels)
        for label, mask in zip(scene.classes, scene.masks, strict=True):
            semantic[mask] = kinds[label]
        Image.fromarray(scene.pixels).save(out / "images" / split / name)
        Image.fromarray(semantic).save(out / "masks" / split / name)
        images.append({"id": index + 1, "file_name": name, "width": WIDTH, "height": HEIGHT})
        annotations += _annotations(scene, index + 1, len(annotations) + 1)
    categories = [
        {"id": i + 1, "name": name, "supercategory": list(KINDS)[kinds[i] - 1]}
        for i, name in enumerate(garments.classes)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / f"{split}.json").write_text(json.dumps(content))


def _annotations(scene: Scene, image: int, first: int) -> list[dict[str, Any]]:
    return [
        {
            "id": first + i,
            "image_id": image,
            "category_id": label + 1,
            "bbox": list(box),
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": {"size": list(mask.shape), "counts": _run_lengths(mask)},
        }
        for i, (label, box, mask) in enumerate(zip(scene.classes, scene.boxes, scene.masks, strict=True))
    ]


def _kind(name: str) -> int:
    """The number of the kind that a class is of."""
    return 1 + next(i for i, names in enumerate(KINDS.values()) if name in names)


def _run_lengths(mask: Mask) -> list[int]:
    """COCO's uncompressed run lengths: down the columns, a run of zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def _framed(image: NDArray[Any], top: int, left: int) -> NDArray[Any]:
    """An image at its position in an empty frame."""
    frame = np.zeros((HEIGHT, WIDTH), dtype=image.dtype)
    frame[top : top + image.shape[0], left : left + image.shape[1]] = image
    return frame


def _box(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


if __name__ == "__main__":
    run_command(build_garment_scenes)
