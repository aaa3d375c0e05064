"""Folders of images and masks: what is read, and that what is wrong with one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atconv.data.config import MaskOptions
from atconv.data.formats import open_masks
from atconv.data.masks.classes import read_mask
from support.tiny_dense import annotated_folder, shared_data


def test_images_and_masks_belong_together() -> None:
    splits = open_masks(shared_data())
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "val": 4}
    split = splits["train"]
    assert split.classes == ["ground", "dark", "bright"]
    for i in range(len(split)):
        pixels, mask = np.asarray(split.read(i, "L")), split.mask(i)
        assert (pixels[mask == 1] == 20).all()
        assert (pixels[mask == 2] == 240).all()
        assert (abs(pixels[mask == 0].astype(int) - 124) <= 4).all()


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_masks_of_indices_are_read_in_any_mode(mode: str, tmp_path: Path) -> None:
    indices = np.array([[0, 1], [1, 0]], np.uint8)
    image = Image.fromarray(indices * (255 if mode == "1" else 1)).convert("1" if mode == "1" else "L")
    if mode == "P":
        image = Image.fromarray(indices, "P")
        image.putpalette([9, 9, 9, 200, 0, 0])
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), indices)


def mask_of(data: Path) -> Path:
    return data / "masks" / "train" / "1.png"


def write(path: Path, value: int, size: tuple[int, int] = (40, 56), mode: str = "L") -> None:
    Image.new(mode, size, value).save(path)


WRONG: dict[str, tuple[Any, str]] = {
    "class": (
        lambda data: write(mask_of(data), 3),
        r"masks/train: 1.png holds 3 \(2240 pixels\): classes.txt names 0 … 2",
    ),
    "size": (
        lambda data: write(mask_of(data), 1, (40, 55)),
        r"1.png is 40 × 56 pixels and not 40 × 55 as its mask",
    ),
    "colors": (
        lambda data: write(mask_of(data), 1, mode="RGB"),
        "1.png holds the colors #010000: .*classes.txt has none; write the color",
    ),
    "missing": (
        lambda data: mask_of(data).unlink(),
        "masks/train: .*images/train/1.png has no mask in .*masks/train: add it",
    ),
    "broken mask": (
        lambda data: mask_of(data).write_text("text"),
        r"masks/train/1.png: not a readable image \(not in an image format\)",
    ),
    "half a mask": (
        lambda data: mask_of(data).write_bytes(mask_of(data).read_bytes()[:60]),
        "masks/train/1.png: not a readable image",
    ),
    "broken image": (
        lambda data: (data / "images" / "train" / "1.png").write_text("text"),
        "images/train/1.png: not a readable image",
    ),
    "two images": (
        lambda data: write(data / "images" / "train" / "1.bmp", 1),
        "1 names two images: rename one",
    ),
    "no classes": (lambda data: (data / "classes.txt").unlink(), "classes.txt does not exist: write"),
    "one class": (
        lambda data: (data / "classes.txt").write_text("a\n"),
        "2 … 255 names, no two alike; it has a",
    ),
    "blank": (
        lambda data: (data / "classes.txt").write_text("a\n\nb\n"),
        "line 2 of .*classes.txt is blank, and each line stands for an index",
    ),
    "Latin-1": (
        lambda data: (data / "classes.txt").write_bytes("grün\nrot\n".encode("latin-1")),
        "classes.txt is not UTF-8: save it as such",
    ),
    "twice": (lambda data: (data / "classes.txt").write_text("a\na\n"), "no two alike; it has a, a"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    harm, message = WRONG[wrong]
    harm(data)
    with pytest.raises(ValueError, match=message):
        open_masks(data)


def test_images_without_a_mask_are_left_out_as_unreadable_ones_are(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=4, val=1)
    expected = open_masks(data)["train"].take([0, 2])
    mask_of(data).unlink()
    (data / "images" / "train" / "3.png").write_text("text")
    for check in ("decode", "header"):
        split = open_masks(data, check, skip_unreadable=True)["train"]  # type: ignore[arg-type]
        assert split.names == expected.names
        assert [split.size(i) for i in range(2)] == [expected.size(i) for i in range(2)]
        assert all(np.array_equal(split.mask(i), expected.mask(i)) for i in range(2))
        (missing, no_mask), (damaged, no_image) = split.skipped
        assert (missing, damaged) == ("1.png", "3.png")
        assert no_mask.startswith(f"{data}/images/train/1.png has no mask")
        assert no_image.startswith(f"{data}/images/train/3.png: not a readable image")


def test_images_may_lie_outside_the_folder_of_masks(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", train=3, val=1)
    expected = open_masks(data)["train"]
    (data / "images").rename(tmp_path / "photos")
    with pytest.raises(ValueError, match="in COCO's format: for masks, give a folder with images/"):
        open_masks(data)
    split = open_masks(data, images=tmp_path / "photos")["train"]
    assert split.names == expected.names
    assert all(np.array_equal(split.mask(i), expected.mask(i)) for i in range(len(split)))
    with pytest.raises(ValueError, match=r"the folder of images .*none does not exist"):
        open_masks(data, images=tmp_path / "none")


def test_empty_and_missing_folders_and_other_classes_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none does not exist: give a folder with images/, masks/"):
        open_masks(tmp_path / "none")
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="has no masks in a format that is read here"):
        open_masks(tmp_path)
    with pytest.raises(ValueError, match="names ground, dark, bright and not a, b as the run does"):
        open_masks(shared_data(), classes=["a", "b"])


def test_ignored_pixels_are_no_class(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    write(mask_of(data), 255)
    assert len(open_masks(data)["train"]) == 3


def test_a_split_without_a_labeled_pixel_raises(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=2, val=1)
    for path in (data / "masks" / "train").iterdir():
        with Image.open(path) as mask:
            size = mask.size
        write(path, 255, size)
    with pytest.raises(ValueError, match=r"masks/train: every pixel is 255, .* no class is labeled"):
        open_masks(data)


def test_training_masks_of_one_class_raise(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=2, val=1)
    for path in (data / "masks" / "train").iterdir():
        mask = read_mask(path)
        Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"every labeled pixel is 0, ground.* index instead"):
        open_masks(data)
    assert len(open_masks(data, split="train")["train"]) == 2  # enough to evaluate on


def test_classes_that_no_mask_holds_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = annotated_folder(tmp_path, train=2, val=1)
    with (data / "classes.txt").open("a") as file:
        file.write("unicorn\n")
    open_masks(data)
    assert "unicorn" in caplog.text
    assert "masks/train holds" in caplog.text


def test_splits_go_by_several_names(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path)
    expected = {name: split.names for name, split in open_masks(data).items()}
    for kind in ("images", "masks"):
        (data / kind / "train").rename(data / kind / "training")
        (data / kind / "val").rename(data / kind / "validation")
    assert {name: split.names for name, split in open_masks(data).items()} == expected


def test_what_lies_next_to_the_splits_is_not_ignored(tmp_path: Path) -> None:
    images = annotated_folder(tmp_path) / "images"
    (images / ".cache").mkdir()
    (images / "notes.txt").write_text("")
    open_masks(tmp_path)
    (images / "val").rename(images / "spare")
    with pytest.raises(ValueError, match=r"images holds spare next to train: move it .*; splits are"):
        open_masks(tmp_path)
    (images / "spare").rename(images / "training")
    with pytest.raises(ValueError, match="images has train and training, two for the train split: leave one"):
        open_masks(tmp_path)


def test_images_in_folders_of_any_names_are_one_split(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path)
    for kind in ("images", "masks"):
        for split, street in (("train", "main"), ("val", "broad")):
            (data / kind / split).rename(data / kind / f"street-{street}")
    splits = open_masks(data)
    assert list(splits) == ["train"]
    assert {"street-main/0.png", "street-broad/0.png"} <= set(splits["train"].names)


def test_splits_may_have_a_word_before_them(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path)
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (data / kind / split).rename(data / kind / f"street-{split}")
    assert list(open_masks(data)) == ["train", "val"]


def test_an_unknown_class_is_named_where_nothing_was_checked(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path)
    write(mask_of(data), 3)
    split = open_masks(data, "none")["train"]
    with pytest.raises(ValueError, match=r"1\.png holds 3 \(2240 pixels\): classes.txt names 0 … 2"):
        split.mask(split.names.index("1.png"))


def test_masks_of_other_values_are_read(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    expected = [open_masks(data)["train"].mask(i) for i in range(3)]
    for path in (data / "masks").rglob("*.png"):
        Image.fromarray(np.array([0, 128, 255], np.uint8)[read_mask(path)]).save(path)
    with pytest.raises(ValueError, match=r"holds 128.*such as --mask-values '\[0, 255\]'"):
        open_masks(data)
    split = open_masks(data, options=MaskOptions(mask_values=(0, 128, 255)))["train"]
    assert all(np.array_equal(split.mask(i), mask) for i, mask in enumerate(expected))
    with pytest.raises(ValueError, match=r"mask_values are 2, and .* names 3 classes"):
        open_masks(data, options=MaskOptions(mask_values=(0, 255)))


def test_what_is_wrong_with_many_masks_is_explained_once(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    for i in range(3):
        mask = np.array(Image.open(data / f"masks/train/{i}.png"))
        mask[0, i] = 7 + i
        Image.fromarray(mask).save(data / f"masks/train/{i}.png")
    message = (
        r"train: 0.png holds 7 \(1 pixel\); 1.png holds 8 \(1 pixel\); 2.png holds 9 \(1 pixel\): classes.txt"
    )
    with pytest.raises(ValueError, match=message) as raised:
        open_masks(data)
    assert str(raised.value).count("--ignored-values") == 1
