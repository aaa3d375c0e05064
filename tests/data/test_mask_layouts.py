"""Layouts that people's masks come in: each is found, and folders of classes are not taken for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atconv.data.formats import UnfitData, open_masks, open_sources, recognize
from atconv.data.mask_layouts import has_masks
from atconv.data.mask_looks import look_at
from support.tiny import tiny_config

SIZE = (20, 24)


def photo(path: Path, seed: int = 0, values: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def mask(path: Path, seed: int = 0, values: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Class indices, written as values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    indices = np.zeros(SIZE, np.uint8)
    top, left = np.random.default_rng(seed).integers(2, 8, 2)
    indices[top : top + 8, left : left + 9] = 1
    Image.fromarray(np.array(values, np.uint8)[indices]).save(path)
    return indices


LAYOUTS = {
    "own": ("images/{s}/{i}.jpg", "masks/{s}/{i}.png"),
    "own without splits": ("images/{i}.png", "masks/{i}.png"),
    "tif": ("images/{i}.jpg", "masks/{i}.tif"),
    "gif": ("images/{i}.jpg", "masks/{i}.gif"),
    "bmp": ("images/{i}.jpg", "masks/{i}.bmp"),
    "TIFF": ("Images/{s}/{i}.JPG", "Masks/{s}/{i}.TIFF"),
    "img": ("img/{i}.jpg", "mask/{i}.png"),
    "gt": ("imgs/{i}.jpg", "gt/{i}.png"),
    "Cityscapes": (
        "leftImg8bit/{s}/city{c}/c_{i}_leftImg8bit.png",
        "gtFine/{s}/city{c}/c_{i}_gtFine_labelIds.png",
    ),
    "Cityscapes as unpacked": (
        "leftImg8bit_trainvaltest/leftImg8bit/{s}/city{c}/c_{i}_leftImg8bit.png",
        "gtFine_trainvaltest/gtFine/{s}/city{c}/c_{i}_gtFine_labelIds.png",
    ),
    "Carvana": ("train/{i}.jpg", "train_masks/{i}_mask.gif"),
    "CamVid": ("{s}/{i}.png", "{s}annot/{i}.png"),
    "CamVid with labels": ("{s}/{i}.png", "{s}_labels/{i}_L.png"),
    "VOC": ("JPEGImages/{i}.jpg", "SegmentationClass/{i}.png"),
    "ADE20K": ("images/{S}/{i}.jpg", "annotations/{S}/{i}.png"),
    "beside": ("{i}.jpg", "{i}_mask.png"),
    "beside, of one suffix": ("{s}/{i}.png", "{s}/{i}_mask.png"),
    "beside, DeepGlobe": ("{s}/{i}_sat.jpg", "{s}/{i}_mask.png"),
    "splits above": ("{s}/images/{i}.jpg", "{s}/masks/{i}.png"),
    "splits above, image and label": ("{s}/image/{i}.png", "{s}/label/{i}.png"),
    "splits in names": ("images_{s}/{i}.png", "masks_{s}/{i}.png"),
    "places": ("place{c}/images/{i}.png", "place{c}/masks/{i}.png"),
    "wrapped": ("data/images/{s}/{i}.png", "data/masks/{s}/{i}.png"),
    "images above": ("{i}.jpg", "masks/{i}.png"),
    "pets": ("images/{i}.jpg", "annotations/trimaps/{i}.png"),
    "ISIC": ("Task1_Input/ISIC_{i}.jpg", "Task1_GroundTruth/ISIC_{i}_segmentation.png"),
    "CVC": ("PNG/Original/{i}.png", "PNG/Ground Truth/{i}.png"),
    "no usual names": ("x/{i}.png", "y/{i}.png"),
    "no usual names, splits": ("{s}/x/{i}.png", "{s}/y/{i}.png"),
}
COUNTS = {"train": 5, "val": 3}


def build(root: Path, name: str, values: tuple[int, ...] = (0, 1)) -> dict[str, dict[str, np.ndarray]]:
    """Write images and masks; class indices by split and name of the image's file. Splits have files of the
    same names."""
    written: dict[str, dict[str, np.ndarray]] = {}
    image, label = LAYOUTS[name]
    split = "{s}" in image or "{S}" in image
    for s, S in (("train", "training"), ("val", "validation")) if split else (("train", ""),):
        for i in range(COUNTS[s]):
            at = {"s": s, "S": S, "i": i, "c": i % 2}
            path, seed = root / image.format(**at), len(s) * 100 + i
            photo(path, seed)
            at_mask = root / label.format(**at)
            written.setdefault(s, {})[str(path)] = mask(at_mask, seed, values)
    (root / "classes.txt").write_text("ground\nfigure\n")
    return written


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognized_and_read(name: str, tmp_path: Path) -> None:
    written = build(tmp_path, name)
    assert has_masks(tmp_path)
    with pytest.raises(UnfitData, match="is recognized as images with masks"):
        open_sources(tiny_config(data=str(tmp_path)))
    splits = open_masks(tmp_path)
    assert {s: {str(o.path(i)) for i in range(len(o))} for s, o in splits.items()} == {
        s: set(files) for s, files in written.items()
    }
    for s, opened in splits.items():
        for i in range(len(opened)):
            assert np.array_equal(opened.mask(i), written[s][str(opened.path(i))])


def flat(path: Path, seed: int = 0) -> None:
    """An image of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist())
    Image.new("RGB", SIZE, color).save(path)


def glyph(path: Path, seed: int = 0) -> None:
    """A shape in black and white."""
    mask(path, seed, (0, 255))


CLASSES: dict[str, dict[str, Callable[[Path, int], None]]] = {
    "photos": {"cat": photo, "dog": photo},
    "many": dict.fromkeys("abcdefgh", photo),
    "people with masks": {"image": photo, "mask": photo},
    "with and without": {"with_mask": photo, "without_mask": photo},
    "names of masks": {"images": photo, "masks": photo, "labels": photo},
    "colors": {"red": flat, "blue": flat},
    "colors called image and mask": {"image": flat, "mask": flat},
    "glyphs": {"alpha": glyph, "beta": glyph},
    "photos and one color": {"leaf": photo, "blank": flat},
    "many, one of glyphs": {**dict.fromkeys("abcdef", photo), "sketch": glyph},
}


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("splits", [("",), ("train/", "val/", "test/")], ids=["flat", "splits"])
@pytest.mark.parametrize("name", CLASSES)
def test_classes_whose_files_have_the_same_names_stay_classes(
    name: str, splits: Iterable[str], suffix: str, tmp_path: Path
) -> None:
    for seed, (s, (label, write)) in enumerate(itertools.product(splits, CLASSES[name].items())):
        for i in range(6):
            write(tmp_path / f"{s}{label}" / f"{i:04}{suffix}", 100 * seed + i)
    assert not has_masks(tmp_path)
    assert open_sources(tiny_config(data=str(tmp_path)))["train"].classes == sorted(CLASSES[name])


def test_left_and_right_in_names_are_no_endings_of_masks(tmp_path: Path) -> None:
    for i, (label, end) in enumerate(itertools.product(("room", "hall"), ("", "_l", "_r", "_gt", "_label"))):
        photo(tmp_path / label / f"1{end}.jpg", i)
    assert not has_masks(tmp_path)


def shades(size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """A smooth gray gradient, as in a sky or an X-ray."""
    return np.add.outer(np.arange(size[0]), np.arange(size[1])).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "suffix", "is_mask"),
    [
        (np.kron(np.eye(4), np.ones((16, 16))) * 255, ".jpg", True),
        (np.kron(np.eye(4), np.ones((13, 13))) * 255, ".jpg", True),
        (np.kron(np.eye(4), np.ones((16, 16))) * 3, ".png", True),
        (np.random.default_rng(0).integers(0, 20, (64, 64)), ".png", True),
        (shades(), ".jpg", False),
        (shades(), ".png", False),
        (shades() // 2 + 40, ".jpg", False),
        (np.random.default_rng(0).normal(128, 30, (64, 64)).clip(0, 255), ".png", False),
        (np.random.default_rng(0).normal(128, 30, (64, 64)).clip(0, 255), ".jpg", False),
    ],
)
def test_masks_have_few_values_and_photos_shades(
    pixels: np.ndarray, suffix: str, is_mask: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    look = look_at(path)
    assert look
    assert look.flat == is_mask
    assert look_at(tmp_path / "none.png") is None


@pytest.mark.parametrize("kind", ["RGB", "palette", "1", "JPEG"])
def test_masks_of_all_kinds_are_recognized(kind: str, tmp_path: Path) -> None:
    for i in range(4):
        photo(tmp_path / "photos" / f"{i}.jpg", i)
        path = tmp_path / "painted" / f"{i}.{'jpg' if kind == 'JPEG' else 'png'}"
        indices = mask(path, i, (0, 255) if kind == "JPEG" else (0, 1))
        if kind == "RGB":
            Image.fromarray(np.array([[9, 9, 9], [200, 30, 60]], np.uint8)[indices]).save(path)
        elif kind == "palette":
            image = Image.fromarray(indices).convert("P")
            image.putpalette([255, 0, 0, 0, 0, 255])
            image.save(path)
        elif kind == "1":
            Image.fromarray(indices * 255).convert("1").save(path)
    assert has_masks(tmp_path)
    found = recognize(tmp_path)
    assert found
    assert found.annotation == "masks"
