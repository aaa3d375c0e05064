"""YOLO's format: what is read, from which layouts, and that what is wrong is named with file and line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atconv.data.boxes.split import BoxSplit
from atconv.data.boxes.yolo import _parse
from atconv.data.formats import open_boxes, recognize
from atconv.tasks import resume
from support.box_formats import LAYOUTS, NAMES, yolo_folder
from support.tiny_dense import detect


def objects(split: BoxSplit) -> list[Any]:
    """Labels and corners of every image, rounded as label files are."""
    return [
        [(split.classes[box.label - 1], np.round(box.corners, 2).tolist()) for box in split.boxes(i)]
        for i in range(len(split))
    ]


def same_objects(split: BoxSplit, other: BoxSplit) -> bool:
    return objects(split) == objects(other) and sum(map(len, objects(split))) > 0


@pytest.mark.parametrize("config", [None, ""], ids=["data.yaml", "folders"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read_as_the_same_boxes_in_coco_are(
    layout: str, config: str | None, tmp_path: Path
) -> None:
    data = yolo_folder(tmp_path / "data", layout, config=config, train=3, val=2)
    (data / "classes.txt").write_text("\n".join(NAMES) + "\n\n")
    splits, coco = open_boxes(data, False), open_boxes(tmp_path / "data-coco", False)
    assert list(splits) == ["train", "val"]
    assert splits["train"].classes == NAMES
    assert all(same_objects(splits[name], coco[name]) for name in splits)
    assert np.array_equal(splits["val"].read(1, "L"), coco["val"].read(1, "L"))


@pytest.mark.parametrize(
    "config",
    [
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [bright, dark]",
        "path: /content/street\ntrain: train/images\nval: [valid/images]\nnames: {0: bright, 1: dark}",
        "train: 'C:\\street\\train\\images'\nval: ./valid/images/\nnames: [bright, dark]\nnc: 2",
        "train: lists/train.txt\nval: valid.txt\nnames: [bright, dark]",
    ],
    ids=["roboflow", "elsewhere", "windows", "lists"],
)
def test_paths_of_tools_are_found_in_the_data(config: str, tmp_path: Path) -> None:
    data = yolo_folder(tmp_path / "data", "train/images", config=config, train=3, val=2)
    (data / "val").rename(data / "valid")
    (data / "lists").mkdir()
    lines = ["./train/images/0.png", "", f"{data}/train/images/1.png", "data/train/images/2.png"]
    (data / "lists" / "train.txt").write_text("\n".join(lines))
    (data / "valid.txt").write_text("valid/images/0.png\nvalid\\images\\1.png\n")
    splits, coco = open_boxes(data, False), open_boxes(tmp_path / "data-coco", False)
    assert list(splits) == ["train", "val"]
    assert all(same_objects(splits[name], coco[name]) for name in splits)


@pytest.mark.parametrize("layout", ["images/train", "train/images"])
def test_folders_of_splits_may_carry_years(layout: str, tmp_path: Path) -> None:
    data = yolo_folder(tmp_path / "data", layout, config="", train=3, val=2)
    for folder in [path for path in data.rglob("*") if path.name in ("train", "val")]:
        folder.rename(folder.with_name(f"{folder.name}2017"))
    splits, coco = open_boxes(data, False), open_boxes(tmp_path / "data-coco", False)
    assert list(splits) == ["train", "val"]
    assert all(len(splits[name]) == len(coco[name]) for name in splits)


def test_images_next_to_label_files_are_one_split(tmp_path: Path) -> None:
    data = yolo_folder(tmp_path / "data", "side by side", config="", train=3, val=2)
    splits = open_boxes(data / "train", False)
    assert list(splits) == ["train"]
    assert splits["train"].classes == ["0", "1"]
    assert [[box.label for box in splits["train"].boxes(i)] for i in range(3)] == [[2, 1]] * 3


def test_polygons_give_boxes_and_masks(tmp_path: Path) -> None:
    data = yolo_folder(tmp_path / "data", polygons=True, train=3, val=1)
    split, coco = open_boxes(data, True)["train"], open_boxes(tmp_path / "data-coco", True)["train"]
    assert same_objects(split, coco)
    for i in range(len(split)):
        assert np.array_equal(split.masks(i), coco.masks(i))
    plain = yolo_folder(tmp_path / "plain", train=3, val=1)
    with pytest.raises(
        ValueError, match=r"labels/train/0\.txt, line 1: it is a box, and masks need polygons"
    ):
        open_boxes(plain, True)


def test_images_without_boxes_are_kept_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = yolo_folder(tmp_path / "data", train=5, val=1)
    (data / "labels" / "train" / "0.txt").unlink()
    (data / "labels" / "train" / "1.txt").write_text("\n")
    shutil.copy(data / "labels" / "train" / "2.txt", data / "labels" / "train" / "none.txt")
    split = open_boxes(data, False, skip_unreadable=True)["train"]
    assert [len(split.boxes(i)) for i in range(5)] == [0, 0, 2, 2, 2]
    assert "train split of" in caplog.text
    assert "1 image has no label file, and 1 an empty one: they are kept" in caplog.text
    [(name, reason)] = split.skipped
    assert name == "labels/train/none.txt"
    assert "none.txt has no image: add it, or remove" in reason
    (data / "labels" / "train" / "none.txt").unlink()
    shutil.rmtree(data / "labels" / "val")
    with pytest.raises(ValueError, match=r"val split of .*none of 1 image has a label file, such as .*0.txt"):
        open_boxes(data, False)


WRONG = {
    b"0 0.5 0.5 0.2": r"line 2: it has 4 columns: give 5, class x_center",
    b"0 0.5 0.5 0.2 0.2 0.9": "line 2: it has 6 columns",
    b"0 0.1 0.1 0.2 0.2 0.3 0.3 0.4": "line 2: it has 8 columns",
    b"2 0.5 0.5 0.2 0.2": r"line 2: its class number 2 is none of 0 … 1",
    b"-1 0.5 0.5 0.2 0.2": "line 2: its class number -1 is none",
    b"0.5 0.5 0.5 0.2 0.2": "line 2: its class number 0.5 is none",
    b"cat 0.5 0.5 0.2 0.2": "line 2: 'cat 0.5 0.5 0.2 0.2' are not all numbers",
    b"nan 0.5 0.5 0.2 0.2": "line 2: its class number nan",
    b"0 nan 0.5 0.2 0.2": "line 2: its coordinates nan 0.5 0.2 0.2 must lie in 0 … 1",
    b"0 inf 0.5 0.2 0.2": "line 2: its coordinates inf",
    b"0 0.5 0.5 0.2 1.2": "line 2: its coordinates 0.5 0.5 0.2 1.2 must lie in 0 … 1",
    b"0 -0.5 0.5 0.2 0.2": "line 2: its coordinates -0.5",
    b"0 32 24 10 10": "line 2: its coordinates 32 24 10 10 must lie in 0 … 1",
    b"0 0.5 0.5 0 0.2": "line 2: its box 0.5 0.5 0 0.2 has no extent",
    b"0 0.99 0.5 0.2 0.2": "line 2: its box 0.99 0.5 0.2 0.2 reaches out of its image: fix",
    b"0 0.1 0.1 0.2 0.2 0.1 1.7": "line 2: its coordinates 0.1 0.1 0.2 0.2 0.1 1.7 must",
    b"0 0.1 0.1 0.2 0.1 0.3 0.1": "line 2: its box .* has no extent",
    b"\xff\xfe0 1": "line 2: it is not UTF-8: save it as such",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_named_with_file_and_line(
    line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = yolo_folder(tmp_path / "data", train=3, val=1)
    file = data / "labels" / "train" / "1.txt"
    first = file.read_bytes().partition(b"\n")[0]
    file.write_bytes(first + b"\n" + line + b"\n")
    message = rf"data\.yaml: .*labels/train/1\.txt, {WRONG[line]}"
    with pytest.raises(ValueError, match=rf"{message}.*--bad-annotations skip"):
        open_boxes(data, False)
    split = open_boxes(data, False, bad_annotations="skip")["train"]
    assert re.search("1 annotations are left out: .*line 2", caplog.text)
    kept = [2, 2] if b"\xff" in line else [2, 1, 2]  # of a file that is no text nothing is known
    assert [len(split.boxes(i)) for i in range(len(split))] == kept


@settings(deadline=None)
@given(st.text(alphabet="0123456789.eE+-naif \tx", max_size=60))
def test_no_line_ends_otherwise_than_in_a_box_or_a_message(line: str) -> None:
    try:
        left, top, right, bottom = _parse(line, 1, 3, False, 0).corners
    except ValueError:
        return
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1


CONFIGS = {
    "names: [a, b": "is not valid YAML in line 1",
    "[]": "says no names",
    "train: images/train": "says no names: give names",
    "names: [bright, dark]\nnc: 3\ntrain: images/train": "nc is 3, and names are 2",
    "names: [bright, bright]\ntrain: images/train": "two of one name",
    "names: [yes, no]\ntrain: images/train": "names must be a list of names.*in quotes",
    "names: {0: bright, 2: dark}\ntrain: images/train": r"names must be numbered 0 … 1, got \[0, 2\]",
    "nc: 100000000000\ntrain: images/train": "nc must be the number of classes, 1 … 10000",
    "names: [bright, dark]\ntrain: images/none": "train, images/none, is not in .*data: put it there",
    "names: [bright, dark]\ntrain: ../../outside": "train, ../../outside, is not in .*data: .*--images",
    "names: [bright, dark]\ntrain: 5": "train must be a folder or list of images, or several, got 5",
    "a: &a [0,0,0,0,0,0,0,0,0]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n"
    "names: [*e,*e,*e]": "its aliases stand for more than",
}


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_wrong_with_a_data_yaml_is_named(config: str, tmp_path: Path) -> None:
    data = yolo_folder(tmp_path / "data", config=config, train=2, val=1)
    (tmp_path / "outside").mkdir()
    with pytest.raises(ValueError, match=CONFIGS[config]) as caught:
        open_boxes(data, False)
    assert str(data / "data.yaml") in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.png", "{tmp}/secret.png", "a/../../secret.png"])
def test_lists_do_not_lead_out_of_the_data(name: str, tmp_path: Path) -> None:
    config = "train: train.txt\nnames: [bright, dark]"
    data = yolo_folder(tmp_path / "data", config=config, train=2, val=1)
    shutil.copy(data / "images" / "train" / "0.png", tmp_path / "secret.png")
    (data / "train.txt").write_text("images/train/0.png\n" + name.format(tmp=tmp_path))
    with pytest.raises(
        ValueError, match=r"train\.txt, line 2: .*secret.png' is not in .*/data: put it there"
    ):
        open_boxes(data, False)
    shutil.copytree(data / "images", tmp_path / "photos")
    (data / "train.txt").write_text(f"{tmp_path}/photos/train/0.png\n")
    shutil.rmtree(data / "images")
    assert len(open_boxes(data, False, images=tmp_path / "photos")["train"]) == 1


def test_images_may_lie_in_a_folder_that_is_named(tmp_path: Path) -> None:
    data = yolo_folder(tmp_path / "data", train=3, val=1)
    photos = (data / "images").rename(tmp_path / "photos")
    splits, coco = open_boxes(data, False, images=photos), open_boxes(tmp_path / "data-coco", False)
    assert all(same_objects(splits[name], coco[name]) for name in ("train", "val"))


def test_one_folder_for_train_and_val_is_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = "train: images/train\nval: images/train\nnames: [bright, dark]"
    data = yolo_folder(tmp_path / "data", config=config, train=3, val=1)
    assert list(open_boxes(data, False)) == ["train"]
    assert "val has the images of train: others are held out for it" in caplog.text


def test_keypoints_are_passed_over(tmp_path: Path) -> None:
    config = "train: images/train\nnames: [bright, dark]\nkpt_shape: [2, 3]"
    data = yolo_folder(tmp_path / "data", config=config, train=2, val=1)
    expected = objects(open_boxes(data, False)["train"])
    for file in (data / "labels" / "train").iterdir():
        lines = file.read_text().splitlines()
        file.write_text("\n".join(f"{line} 0.5 0.5 2 0.1 0.1 0" for line in lines))
    assert objects(open_boxes(data, False)["train"]) == expected


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_orientation_is_decided_by_the_option(orientation: int, tmp_path: Path) -> None:
    data = yolo_folder(tmp_path / "data", polygons=True, train=3, val=1)
    for path in (data / "images").rglob("*.png"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.open(path).save(path, exif=exif)
    with pytest.raises(ValueError, match=r"3 images carry an EXIF .*--exif stored or --exif upright"):
        open_boxes(data, True)
    stored, upright = (open_boxes(data, True, exif=exif)["train"] for exif in ("stored", "upright"))
    for i in range(3):
        pixels = np.asarray(stored.read(i, "L"))
        mask = stored.masks(i)[1].astype(bool)
        assert stored.size(i) == upright.size(i) == mask.shape == pixels.shape
        assert (pixels[mask] == 240).all()
        left, top, right, bottom = np.round(stored.boxes(i)[1].corners).astype(int)
        assert mask[top:bottom, left:right].all()
    first = upright.boxes(0)[0].corners
    x, y = (float(value) for value in (data / "labels/train/0.txt").read_text().split()[1:3])
    height, width = upright.size(0)
    assert first[0] == pytest.approx(x * width)
    assert first[1] == pytest.approx(y * height)


def test_captions_next_to_images_are_no_boxes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a cat on a mat, 5 of 6 times")
    found = recognize(tmp_path)
    assert found is not None
    assert found.annotation == "labels"


def test_a_run_trains_and_is_evaluated_on_its_saved_split(tmp_path: Path) -> None:
    import atconv

    data = yolo_folder(tmp_path / "data", "train/images", polygons=True, train=6, val=3)
    shutil.rmtree(data / "val")
    (data / "data.yaml").write_text("train: train/images\nnames: [bright, dark]")
    run = detect(tmp_path / "run", data, epochs=1, val_fraction=0.4, architecture="mask_rcnn")
    resume(run)
    metrics = atconv.load(run).evaluate()
    assert (metrics.split, metrics.images) == ("val", 2)
    (data / "train" / "labels" / "0.txt").write_text("0 0.1 0.1 0.2 0.1 0.2 0.3")
    with pytest.raises(ValueError, match="the images or annotations are not those that"):
        resume(run)


def test_what_is_rounded_over_the_edge_is_clipped(tmp_path: Path) -> None:
    data = yolo_folder(tmp_path / "data", train=3, val=1)
    lines = ["0 0.5 0.5 1.004 0.5", "0 1.005 0.2 0.5 -0.003 0.4 0.8"]
    (data / "labels" / "train" / "1.txt").write_text("\n".join(lines) + "\n")
    whole, polygon = open_boxes(data, False)["train"].boxes(1)
    width, height = open_boxes(data, False)["train"].size(1)[::-1]
    assert whole.corners == pytest.approx((0, 0.25 * height, width, 0.75 * height))
    assert polygon.corners == pytest.approx((0.4 * width, 0, width, 0.8 * height))
    assert (min(polygon.segmentation[0][1::2]), max(polygon.segmentation[0][0::2])) == (0, width)
    (data / "labels" / "train" / "1.txt").write_text("0 0.5 0.5 1.03 0.5\n")
    with pytest.raises(ValueError, match="must lie in 0 … 1"):
        open_boxes(data, False)


def test_advice_on_many_boxes_is_said_once(tmp_path: Path) -> None:
    data = yolo_folder(tmp_path / "data", train=3, val=1)
    for file in (data / "labels" / "train").glob("*.txt"):
        file.write_text("0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.2 0.2\n")
    with pytest.raises(ValueError, match=r"masks need polygons; .*masks need polygons") as caught:
        open_boxes(data, True)
    assert str(caught.value).count("give class x y") == 1
