"""Garment scenes: real garments that lie over each other, with exact boxes and masks.

A scene of 96 × 128 gray pixels shows one to three garments (Fashion-MNIST) of 36 to 60 pixels over clutter.
Each has its class (ten), its box and the mask of what is seen of it; a semantic mask has the kind of every
pixel: shirts, coats, pullovers and dresses are hard to tell apart even for people, and are of one kind.

Scene i of a side is a function of (seed, side, i) alone: `draw_scene` says how. Training scenes are made of
nine tenths of Fashion-MNIST's training pictures, validation scenes of the last tenth, test scenes of its test
pictures.
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

from atconv.data.garments import Garments, Pixels, lay_fragments, load_garments, scale
from atconv.data.splits import SPLITS
from atconv.engine.progress import plain_console, track
from atconv.io import write_atomically

__all__ = ["HEIGHT", "KINDS", "WIDTH", "Scene", "build_garment_scenes", "draw_scene", "load_side"]

HEIGHT, WIDTH = 96, 128
KINDS = {
    "top-or-dress": ("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt"),
    "trousers": ("Trouser",),
    "shoe": ("Sandal", "Sneaker", "Ankle boot"),
    "bag": ("Bag",),
}
"""Fashion-MNIST's classes of each kind; masks number the kinds from 1, 0 is background"""

_MOST_GARMENTS = 3
_LEAST, _MOST = 36, 60  # side of a garment
_FRAGMENTS, _FRAGMENT_SIDE, _FADED = 12, 12, 0.5
_INK = 24  # what is darker than this in a garment's picture is not garment
_SEEN = 0.75  # least share of a garment that others leave to be seen

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """One scene, and what it shows."""

    pixels: Pixels
    """H W"""
    classes: list[int]
    """of the garments, from the lowest to the uppermost"""
    masks: list[Mask]
    """for each garment the pixels that are seen of it, H W; none is empty, none overlaps another"""

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """left, top, width, height of each mask."""
        return [_box(mask) for mask in self.masks]


def draw_scene(garments: Garments, seed: int, side: int, index: int) -> Scene:
    """Scene `index` of a side (0 train, 1 val, 2 test).

    From numpy's default_rng([seed, side, index]), in this order: twelve fragments of 12 × 12 at half
    brightness, cut anywhere from any garment and laid anywhere; how many garments, one to three, and the
    class of each; for each a picture and a side of 36 to 60 pixels; places, drawn together again until three
    quarters of each garment are seen. Later garments lie over earlier ones.
    """
    rng = np.random.default_rng([seed, side, index])
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    lay_fragments(rng, pixels, garments.pictures, _FRAGMENTS, _FRAGMENT_SIDE, _FADED)
    classes = [int(c) for c in rng.integers(0, len(garments.names), rng.integers(1, _MOST_GARMENTS + 1))]
    pictures = []
    for number in classes:
        picture = garments.pictures[rng.choice(np.flatnonzero(garments.classes == number))]
        pictures.append(scale(picture, int(rng.integers(_LEAST, _MOST + 1))))
    while True:
        places = [rng.integers(0, [HEIGHT - len(p) + 1, WIDTH - len(p) + 1]) for p in pictures]
        whole = [_placed(p > _INK, *place) for p, place in zip(pictures, places, strict=True)]
        covered = [*accumulate(reversed(whole), np.logical_or)][::-1]  # by each and those after it
        seen = [own & ~over for own, over in zip(whole, [*covered[1:], np.zeros_like(whole[0])], strict=True)]
        if all(part.sum() >= _SEEN * own.sum() for part, own in zip(seen, whole, strict=True)):
            break
    for picture, place, mask in zip(pictures, places, seen, strict=True):
        pixels[mask] = _placed(picture, *place)[mask]
    return Scene(pixels, classes, seen)


def load_side(data_root: Path, side: str) -> Garments:
    """The garments that scenes of a side are made of. Raises FileNotFoundError where there are none."""
    found = load_garments(data_root, "test" if side == "test" else "train")
    if side == "test":
        return found
    tenth = np.arange(len(found.classes)) >= 0.9 * len(found.classes)
    kept = tenth if side == "val" else ~tenth
    return Garments(found.pictures[kept], found.classes[kept], found.names)


def build_garment_scenes(
    data_root: Path, out: Path, train: int = 4000, val: int = 200, test: int = 500, seed: int = 0
) -> Path:
    """Write a folder that `atconv detect train` and `atconv segment train` take.

        OUT/images/SIDE/000000.png    the scenes
        OUT/SIDE.json                 boxes and instance masks, COCO's format
        OUT/masks/SIDE/000000.png     the kind of every pixel
        OUT/classes.txt               names of the kinds

    Args:
        data_root: what `atconv data fashion-mnist` wrote.
        out: folder to write; it must be new or empty.
        train: training scenes.
        val: validation scenes.
        test: test scenes.
        seed: of the scenes.

    Returns:
        the folder.

    Raises:
        FileNotFoundError: Fashion-MNIST is not there.
        ValueError: no scenes were asked for, or the folder is not empty.
    """
    counts, out = (train, val, test), Path(out)
    if min(counts) < 1 or seed < 0:
        raise ValueError(
            f"train, val and test must be at least 1 and seed at least 0, got {train}, {val}, {test}, {seed}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: remove it, or name another folder")
    sides = {side: load_side(Path(data_root), side) for side in SPLITS}
    writing = out.with_name(f".writing-{out.name}")  # an interrupted call leaves nothing at `out`
    shutil.rmtree(writing, ignore_errors=True)
    for number, (side, garments) in enumerate(sides.items()):
        _write_side(garments, writing, side, number, counts[number], seed)
    (writing / "classes.txt").write_text("\n".join(["background", *KINDS]) + "\n")
    if out.exists():
        out.rmdir()
    writing.rename(out)
    return out


def _write_side(garments: Garments, out: Path, side: str, number: int, count: int, seed: int) -> None:
    kinds = np.array([_kind(name) for name in garments.names], dtype=np.uint8)
    for folder in ("images", "masks"):
        (out / folder / side).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in track(range(count), plain_console(), f"{side} scenes", count):
        scene = draw_scene(garments, seed, number, index)
        name = f"{index:06d}.png"
        semantic = np.zeros_like(scene.pixels)
        for label, mask in zip(scene.classes, scene.masks, strict=True):
            semantic[mask] = kinds[label]
        Image.fromarray(scene.pixels).save(out / "images" / side / name)
        Image.fromarray(semantic).save(out / "masks" / side / name)
        images.append({"id": index + 1, "file_name": name, "width": WIDTH, "height": HEIGHT})
        annotations += _annotations(scene, index + 1, len(annotations) + 1)
    categories = [
        {"id": i + 1, "name": name, "supercategory": list(KINDS)[kinds[i] - 1]}
        for i, name in enumerate(garments.names)
    ]
    told = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    write_atomically(out / f"{side}.json", lambda temporary: temporary.write_text(told))


def _annotations(scene: Scene, image: int, first: int) -> list[dict[str, Any]]:
    return [
        {
            "id": first + i,
            "image_id": image,
            "category_id": label + 1,
            "bbox": list(box),
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": {"size": list(mask.shape), "counts": _runs(mask)},
        }
        for i, (label, box, mask) in enumerate(zip(scene.classes, scene.boxes, scene.masks, strict=True))
    ]


def _kind(name: str) -> int:
    """The number of the kind that a class is of."""
    return 1 + next(i for i, names in enumerate(KINDS.values()) if name in names)


def _runs(mask: Mask) -> list[int]:
    """COCO's uncompressed run lengths: down the columns, a run of zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def _placed(picture: NDArray[Any], top: int, left: int) -> NDArray[Any]:
    """A picture in an empty frame."""
    frame = np.zeros((HEIGHT, WIDTH), dtype=picture.dtype)
    frame[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return frame


def _box(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1
