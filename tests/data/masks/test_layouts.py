"""Layouts that people's masks come in: each is found, and folders of classes are not taken for it."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atconv.data.config import MaskOptions
from atconv.data.formats import UnfitData, open_masks, open_sources, recognize
from atconv.data.masks.layouts import has_masks
from atconv.data.masks.looks import look_at
from atconv.tasks.segmentation import SegmentationConfig
from support.tiny import atconv, tiny_config
from support.tiny_dense import SEGMENT, options

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
    "years": ("images/{s}2017/{i}.jpg", "masks/{s}2017/{i}.png"),
    "years above": ("{s}2017/images/{i}.jpg", "{s}2017/masks/{i}.png"),
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
    "words before": ("images/img_{i}.jpg", "masks/mask_{i}.png"),
    "words before, next to each other": ("sat_{i}.jpg", "gt_{i}.png"),
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


def test_plain_images_with_plain_masks_are_recognized_by_names_and_kinds(tmp_path: Path) -> None:
    for i in range(3):
        flat(tmp_path / f"images/{i}.png", i)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("L", SIZE, i).save(tmp_path / f"masks/{i}.png")
    assert has_masks(tmp_path)


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


def test_of_several_masks_one_kind_is_taken_or_chosen(tmp_path: Path) -> None:
    for split, count in COUNTS.items():
        for i in range(count):
            photo(tmp_path / f"leftImg8bit/{split}/a/a_{i}_leftImg8bit.png", i)
            for kind in ("gtFine", "gtCoarse"):
                start = tmp_path / f"{kind}/{split}/a/a_{i}_{kind}"
                for name, values in (("labelIds", (0, 7)), ("labelTrainIds", (0, 1)), ("color", (9, 8))):
                    mask(start.with_name(f"{start.name}_{name}.png"), i, values)
    (tmp_path / "classes.txt").write_text("ground\nfigure\n")
    splits = open_masks(tmp_path)
    assert [len(splits[split]) for split in COUNTS] == list(COUNTS.values())
    assert splits["val"].mask_path(0) == tmp_path / "gtFine/val/a/a_0_gtFine_labelTrainIds.png"
    options = MaskOptions(masks="gtCoarse", mask_names="*_gtCoarse_labelIds", mask_values=(0, 7))
    splits = open_masks(tmp_path, options=options)
    assert splits["val"].mask_path(0) == tmp_path / "gtCoarse/val/a/a_0_gtCoarse_labelIds.png"
    with pytest.raises(ValueError, match=r"the folder of masks .*none does not exist"):
        open_masks(tmp_path, options=MaskOptions(masks="none"))
    with pytest.raises(ValueError, match=r"have no names in common, such as a_0_leftImg8bit.png and a_0_gt"):
        open_masks(tmp_path, options=MaskOptions(mask_names="*_other"))


def test_masks_in_two_places_are_asked_about(tmp_path: Path) -> None:
    for i in range(3):
        photo(tmp_path / f"images/{i}.jpg", i)
        mask(tmp_path / f"masks/{i}.png", i)
        mask(tmp_path / f"labels/{i}.png", i)
    (tmp_path / "classes.txt").write_text("ground\nfigure\n")
    with pytest.raises(
        ValueError, match=r"have masks in labels, masks: choose one, such as --masks 'labels'"
    ):
        open_masks(tmp_path)
    assert open_masks(tmp_path, options=MaskOptions(masks="masks"))["train"].where == tmp_path / "masks"


def test_names_that_images_and_masks_do_not_share_are_reported(tmp_path: Path) -> None:
    for i in range(3):
        photo(tmp_path / f"images/x{i}.jpg", i)
        mask(tmp_path / f"masks/m-x{i}.png", i)
    (tmp_path / "classes.txt").write_text("ground\nfigure\n")
    with pytest.raises(ValueError, match=r"no names in common, such as x0.jpg and m-x0.png: .* --mask-names"):
        open_masks(tmp_path)
    assert len(open_masks(tmp_path, options=MaskOptions(mask_names="m-*"))["train"]) == 3
    with pytest.raises(ValueError, match=r"mask_names must have one \* .*, got 'm-'"):
        SegmentationConfig(mask_names="m-")


def test_lone_images_and_masks_are_left_out_alike(tmp_path: Path) -> None:
    build(tmp_path, "Carvana")
    (tmp_path / "train" / "1.jpg").unlink()
    (tmp_path / "train_masks" / "3_mask.gif").unlink()
    with pytest.raises(
        ValueError, match=r"3.jpg has no mask in .*train_masks.*1_mask.gif has no image in .*train: add it"
    ):
        open_masks(tmp_path)
    split = open_masks(tmp_path, skip_unreadable=True)["train"]
    assert split.names == ["0.jpg", "2.jpg", "4.jpg"]
    assert [name for name, _ in split.skipped] == ["3.jpg", "1_mask.gif"]


def test_folders_of_images_without_masks_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path, "Carvana")
    build(tmp_path / "b", "own")
    for folder in (tmp_path / "test", tmp_path / "b" / "images" / "test"):
        photo(folder / "x.jpg")
    with caplog.at_level(logging.INFO):
        assert list(open_masks(tmp_path / "b")) == ["train", "val"]
        assert f"not used, folders of images without masks: {tmp_path}/b/images/test (1 image)" in caplog.text
        shutil.rmtree(tmp_path / "b")
        assert list(open_masks(tmp_path)) == ["train"]
        assert f"without masks: {tmp_path}/test (1 image)" in caplog.text
        assert f"the mask of {tmp_path}/train/0.jpg is {tmp_path}/train_masks/0_mask.gif" in caplog.text


def test_pascal_voc_lists_its_splits(tmp_path: Path) -> None:
    for i in range(6):
        photo(tmp_path / f"JPEGImages/{i}.jpg", i)
        photo(tmp_path / f"JPEGImages/not-segmented-{i}.jpg", 10 + i)
        (tmp_path / f"Annotations/{i}.xml").parent.mkdir(exist_ok=True)
        (tmp_path / f"Annotations/{i}.xml").write_text("<annotation/>")
        mask(tmp_path / f"SegmentationClass/{i}.png", i)
        mask(tmp_path / f"SegmentationObject/{i}.png", i, (0, 3))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, of_it in {"train": "0 1 3", "val": "2 4", "trainval": "0 1 2 3 4", "test": "9"}.items():
        (lists / f"{name}.txt").write_text("\n".join(of_it.split()))
    (tmp_path / "classes.txt").write_text("ground\nfigure\n")
    splits = open_masks(tmp_path)
    assert {name: split.names for name, split in splits.items()} == {
        "train": ["0.jpg", "1.jpg", "3.jpg"],
        "val": ["2.jpg", "4.jpg"],
    }


def test_runs_on_masks_of_colors_in_other_folders_are_evaluated_resumed_and_predict(tmp_path: Path) -> None:
    data = tmp_path / "data"
    colors = np.array([(0, 0, 0), (128, 64, 128)], np.uint8)
    for path, files in build(data, "CamVid with labels").items():
        for image, indices in files.items():
            name = Path(image).stem
            Image.fromarray(colors[indices]).save(data / f"{path}_labels" / f"{name}_L.png")
    (data / "classes.txt").unlink()
    (data / "class_dict.csv").write_text("name,r,g,b\nground,0,0,0\nfigure,128,64,128\nunicorn,9,9,9\n")
    given = options(SEGMENT, epochs=1, in_chans=3)
    ended = atconv("segment", "train", data, *given, f"--out={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    assert "no mask in" in ended.out + ended.err
    assert "holds unicorn" in ended.out + ended.err
    (tmp_path / "run" / "metrics.json").unlink()
    ended = atconv("segment", "train", "--resume", tmp_path / "run")
    assert ended.code == 0, ended.err
    for extra in ([], [data, "--split=train"]):
        ended = atconv("segment", "evaluate", tmp_path / "run", *extra)
        assert ended.code == 0, ended.err
    ended = atconv("segment", "predict", tmp_path / "run", data / "val" / "0.png")
    assert ended.code == 0, ended.err
