"""Pascal VOC's format: what is read, from which layouts, and what is said of files that are wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atconv.data.formats import open_boxes
from atconv.tasks.detection.data import load_target
from support.box_formats import voc_folder, voc_object
from support.tiny_dense import detect


@pytest.mark.parametrize("layout", ["VOC", "images/train", "train/images", "side by side"])
def test_layouts_are_read_as_the_same_boxes_in_coco_are(layout: str, tmp_path: Path) -> None:
    data = voc_folder(tmp_path / "data", layout, train=3, val=2)
    splits, coco = open_boxes(data, False), open_boxes(tmp_path / "data-coco", False)
    assert list(splits) == ["train", "val"]
    assert splits["train"].classes == ["bright", "dark"]
    for name, split in splits.items():
        for i in range(len(split)):
            expected = coco[name].boxes(i)
            assert [(b.label, b.corners) for b in split.boxes(i)] == [(b.label, b.corners) for b in expected]
            assert np.array_equal(split.read(i, "L"), coco[name].read(i, "L"))


@pytest.mark.parametrize(
    "lists", [{"trainval": [0, 1, 2]}, {"default": [0, 1, 2]}, {"train": [0, 1, 2], "test": [0]}]
)
def test_lists_of_names_are_splits(lists: dict[str, list[int]], tmp_path: Path) -> None:
    data = voc_folder(tmp_path / "data", "VOC", train=3, val=1)
    shutil.rmtree(data / "ImageSets")
    (data / "ImageSets" / "Main").mkdir(parents=True)
    for name, numbers in lists.items():
        (data / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"train{i}  1\n" for i in numbers))
    (data / "ImageSets" / "Main" / "bright_train.txt").write_text("train0 -1\n")
    splits = open_boxes(data, False)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 3,
        **({"test": 1} if "test" in lists else {}),
    }


def one(root: Path, objects: str, size: tuple[int, int] | None = (56, 40), filename: str = "0.png") -> Path:
    """A folder of one image and one XML file."""
    (root / "JPEGImages").mkdir(parents=True)
    (root / "Annotations").mkdir()
    Image.new("L", (56, 40)).save(root / "JPEGImages" / "0.png")
    extent = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    text = f"<annotation>\n<filename>{filename}</filename>{extent}\n{objects}\n</annotation>"
    (root / "Annotations" / "0.xml").write_text(text)
    return root


def test_pixels_count_from_one_and_the_last_belongs_to_the_box(tmp_path: Path) -> None:
    boxes = [(1, 1, 10, 10), (0, 0, 56, 40), (11.5, 2, 20, 40)]
    data = one(tmp_path, "".join(voc_object("a", box) for box in boxes))
    split = open_boxes(data, False)["train"]
    assert [box.corners for box in split.boxes(0)] == [(0, 0, 10, 10), (0, 0, 56, 40), (10.5, 1, 20, 40)]


def test_difficult_objects_are_crowds_and_parts_are_not_read(tmp_path: Path) -> None:
    part = voc_object("head", (1, 1, 3, 3)).replace("object>", "part>")
    hard = voc_object("cat", (4, 4, 9, 9), part + "<difficult>1</difficult>")
    data = one(tmp_path, hard + voc_object("cat", (14, 4, 19, 9), part + "<difficult>0</difficult>"))
    split = open_boxes(data, False)["train"]
    assert split.classes == ["cat"]
    assert load_target(split, 0, False)["iscrowd"].tolist() == [1, 0]
    assert [box.corners for box in split.boxes(0)] == [(3, 3, 9, 9), (13, 3, 19, 9)]


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_a_size_that_is_missing_is_that_of_the_image(size: tuple[int, int] | None, tmp_path: Path) -> None:
    data = one(tmp_path, voc_object("a", (1, 1, 56, 40)), size)
    assert open_boxes(data, False)["train"].boxes(0)[0].corners == (0, 0, 56, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(data / "JPEGImages" / "0.png").save(data / "JPEGImages" / "0.png", exif=exif)
    with pytest.raises(ValueError, match=r"0\.xml: it has no size, and its image is turned by EXIF"):
        open_boxes(data, False)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_sizes_and_the_option_tell_what_boxes_belong_to(orientation: int, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    data = one(tmp_path, voc_object("a", (3, 1, 12, 5)))
    exif, pixels = Image.Exif(), np.zeros((40, 56), np.uint8)
    exif[0x0112], pixels[:5, 2:12] = orientation, 255
    Image.fromarray(pixels).save(data / "JPEGImages" / "0.png", exif=exif)
    if orientation < 5:
        with pytest.raises(
            ValueError, match=r"1 image carries .*0\.png \(\d\).*--exif stored or --exif upright"
        ):
            open_boxes(data, False)
    stored = open_boxes(data, False, exif="stored" if orientation < 5 else None)["train"]
    assert re.search(
        "1 image carries an EXIF orientation; annotations .* the stored pixels of 1, .* of 0", caplog.text
    )
    left, top, right, bottom = map(int, stored.boxes(0)[0].corners)
    assert (np.asarray(stored.read(0, "L"))[top:bottom, left:right] == 255).all()
    assert sorted((right - left, bottom - top)) == [5, 10]


WRONG: dict[str, tuple[str, str]] = {
    "no extent": (voc_object("a", (9, 4, 9, 8)), r"0\.xml, line 3: its box xmin 9 .* has no extent"),
    "turned": (voc_object("a", (9, 4, 5, 8)), "line 3: its box .* has no extent"),
    "outside": (voc_object("a", (9, 4, 99, 8)), "line 3: .* reaches out of its image of 56 × 40 pixels"),
    "text": (voc_object("a", ("q", 4, 9, 8)), "line 3: its box is xmin q .*: give four numbers"),
    "nan": (voc_object("a", ("nan", 4, 9, 8)), "line 3: its box is xmin nan"),
    "huge": (voc_object("a", (4, 4, "1e99", 8)), "line 3: its box is .*: give four numbers"),
    "empty": (voc_object("a", ("", 4, 9, 8)), "line 3: its box is xmin "),
    "no name": (voc_object(" ", (4, 4, 9, 8)), "line 3: an object has no name"),
    "no box": ("<object><name>a</name></object>", "line 3: an object has no bndbox"),
    "not closed": ("<object>", r"0\.xml: mismatched tag: line 4"),
    "second line": (voc_object("a", (1, 1, 9, 9)) + "\n" + voc_object("a", (1, 1, 1, 9)), "line 4: its box"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named_with_file_and_line(wrong: str, tmp_path: Path) -> None:
    objects, message = WRONG[wrong]
    data = one(tmp_path / "data", objects)
    shutil.copytree(one(tmp_path / "good", voc_object("a", (4, 4, 9, 9))) / "JPEGImages", data / "more")
    shutil.copy(data / "more" / "0.png", data / "JPEGImages" / "1.png")
    shutil.copy(tmp_path / "good" / "Annotations" / "0.xml", data / "Annotations" / "1.xml")
    with pytest.raises(ValueError, match=rf"data/Annotations: .*{message}.*--bad-annotations skip"):
        open_boxes(data, False)
    split = open_boxes(data, False, bad_annotations="skip")["train"]
    assert split.names == (["1.png"] if wrong == "not closed" else ["0.png", "1.png"])


BOMB = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]><annotation><filename>&i;</filename></annotation>"
)
FILES: dict[str, tuple[bytes, str]] = {
    "bomb": (BOMB.encode(), "it declares a document type, which is not read"),
    "bomb in UTF-16": (BOMB.encode("utf-16"), "it declares a document type, which is not read"),
    "other file": (
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        "it declares a document type",
    ),
    "other root": (b"<annotations/>", "it holds <annotations> and not <annotation>"),
    "no XML": (b"\x00\x01\x02", "not well-formed|no element found"),
    "Latin-1": (b"<annotation><filename>\xe9</filename></annotation>", "not well-formed .*: line 1"),
    "nothing": (b"", "no element found: line 1"),
    "size in words": (
        b"<annotation><size><width>a</width><height>4</height></size></annotation>",
        "its size is a × 4",
    ),
    "deep": (b"<annotation>" + b"<a>" * 20_000, "no element found: line 1"),
}


@pytest.mark.parametrize("wrong", FILES)
def test_files_that_are_no_annotations_are_named(wrong: str, tmp_path: Path) -> None:
    data = voc_folder(tmp_path / "data", "VOC", train=3, val=1)
    content, message = FILES[wrong]
    (data / "Annotations" / "train1.xml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"Annotations: train1\.xml: ({message})"):
        open_boxes(data, False)
    assert open_boxes(data, False, bad_annotations="skip")["train"].names == ["train0.png", "train2.png"]


def test_an_image_is_found_by_the_name_of_its_file_else_by_that_in_it(tmp_path: Path) -> None:
    data = one(tmp_path / "data", voc_object("a", (1, 1, 9, 9)), filename="other.png")
    assert open_boxes(data, False)["train"].names == ["0.png"]
    (data / "JPEGImages" / "0.png").rename(data / "JPEGImages" / "other.png")
    assert open_boxes(data, False)["train"].names == ["other.png"]
    (data / "JPEGImages" / "other.png").rename(data / "JPEGImages" / "third.png")
    with pytest.raises(ValueError, match=r"image 0: .*other\.png does not exist: put it back"):
        open_boxes(data, False)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "C:\\secret.png"])
def test_the_name_in_a_file_does_not_lead_out_of_the_data(name: str, tmp_path: Path) -> None:
    data = one(tmp_path / "data", voc_object("a", (1, 1, 9, 9)), filename=name)
    (data / "JPEGImages" / "0.png").rename(tmp_path / "secret.png")
    Image.new("L", (4, 4)).save(data / "JPEGImages" / "1.png")
    with pytest.raises(ValueError, match=r"0\.xml: its filename .* leads out of .*/data: put it there"):
        open_boxes(data, False)


def test_images_without_an_xml_file_are_left_out_and_reported(tmp_path: Path) -> None:
    data = voc_folder(tmp_path / "data", "train/images", train=3, val=1)
    (data / "train" / "Annotations" / "0.xml").unlink()
    text = (data / "train" / "Annotations" / "1.xml").read_text()
    (data / "train" / "Annotations" / "1.xml").write_text(re.sub("<object>.*</object>", "", text))
    split = open_boxes(data, False, skip_unreadable=True)["train"]
    assert [len(split.boxes(i)) for i in range(len(split))] == [0, 2]
    [(name, reason)] = split.skipped
    assert name == "0.png"
    assert "0.png has no XML file in" in reason


def test_a_class_of_another_split_alone_is_a_class(tmp_path: Path) -> None:
    data = voc_folder(tmp_path / "data", "train/images", train=3, val=1)
    file = data / "val" / "Annotations" / "0.xml"
    file.write_text(file.read_text().replace("bright", "cat"))
    assert open_boxes(data, False)["val"].classes == ["bright", "cat", "dark"]
    with pytest.raises(ValueError, match="its categories cat are not among the classes bright, dark"):
        open_boxes(data, False, classes=["bright", "dark"])


def test_masks_are_not_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have no masks: train --architecture faster_rcnn"):
        open_boxes(voc_folder(tmp_path / "data", "VOC", train=1, val=1), True)


def test_a_run_trains_and_is_evaluated_on_its_saved_split(tmp_path: Path) -> None:
    import atconv

    data = voc_folder(tmp_path / "data", "train/images", train=6, val=3)
    run = detect(tmp_path / "run", data / "train", epochs=1, val_fraction=0.4)
    metrics = atconv.load(run).evaluate()
    assert (metrics.split, metrics.images) == ("val", 2)
    assert atconv.load(run).evaluate(str(data), "val").images == 3
