"""What is alike in all files of boxes: names of images that are URLs, numbers out of all measure, shares."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atconv.data.config import DataConfig
from atconv.data.formats import open_boxes, open_masks, open_sources, recognize
from atconv.tasks.detection.data import load_target
from support.box_formats import voc_folder, yolo_folder
from support.tiny_dense import annotated_folder

URLS = [
    "https://example.com/data/{}?token=a",
    "file:///data/street/images/train/{}",
    "s3://bucket/train/{}",
    "/data/upload/1/{}",
    "/data/local-files/?d=street%2Fimages%2Ftrain%2F{}",
]
Change = Callable[[dict[str, Any]], Any]


def coco_with(root: Path, change: Change) -> Path:
    """A COCO folder with another train.json."""
    data = annotated_folder(root, train=3, val=1)
    content = json.loads((data / "train.json").read_text())
    change(content)
    (data / "train.json").write_text(json.dumps(content))
    return data


@pytest.mark.parametrize("url", URLS)
def test_an_image_of_a_url_is_found_by_the_end_of_its_path(url: str, tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = url.format(image["file_name"])

    names = ["0.png", "1.png", "2.png"]
    coco = coco_with(tmp_path / "coco", rename)
    yolo = yolo_folder(tmp_path / "yolo", config="train: train.txt\nnames: [bright, dark]", train=3, val=1)
    (yolo / "train.txt").write_text("".join(url.format(name) + "\n" for name in names))
    voc = voc_folder(tmp_path / "voc", train=3, val=1)
    for file in (voc / "train" / "Annotations").iterdir():
        text = re.sub(
            "<filename>(.*)</filename>",
            lambda m: f"<filename>{url.format(m[1])}</filename>",
            file.read_text(),
        )
        file.with_name(f"task-{file.name}").write_text(text)
        file.unlink()
    table = yolo / "images" / "train" / "labels.csv"
    table.write_text(
        "image,label\n" + "".join(f"{url.format(name)},{i % 2}\n" for i, name in enumerate(names))
    )
    for data in (coco, yolo, voc):
        assert [Path(name).name for name in open_boxes(data, False)["train"].names] == names
        next(data.rglob("train/**/1.png")).unlink()
        with pytest.raises(ValueError, match=r"1\.png does not exist: put it back, or remove"):
            open_boxes(data, False)
    source = open_sources(DataConfig(data=str(table)))["train"]
    assert [source.name(i) for i in (0, 2)] == ["0.png", "2.png"]
    with pytest.raises(ValueError, match=r"is a URL, and 1.png does not exist in .*: download it"):
        source.encoded(1)


def test_two_urls_of_one_name_are_named(tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        for i in (0, 1):
            content["images"][i]["file_name"] = f"https://example.com/{i}/0.png"

    with pytest.raises(ValueError, match=r"another image has file_name '0\.png'"):
        open_boxes(coco_with(tmp_path, rename), False)


HUGE = 10**400
HUGE_NUMBERS: dict[str, tuple[Change, str]] = {
    "width": (lambda c: c["images"][1].update(width=HUGE), "image 101: width and height must be"),
    "both": (lambda c: c["images"][1].update(width=10**8, height=10**8), "image 101: width and"),
    "float": (lambda c: c["images"][1].update(height=1e300), "image 101: width and height must be"),
    "image": (lambda c: c["annotations"][1].update(image_id=HUGE), "annotation 2: no image has the id"),
    "box": (lambda c: c["annotations"][1].update(bbox=[1, 1, HUGE, 2]), "annotation 2: its box is"),
    "area": (lambda c: c["annotations"][1].update(area=HUGE), "annotation 2: its area must"),
    "polygon": (
        lambda c: c["annotations"][1].update(segmentation=[[1, HUGE, 2, 3, 3, 4]]),
        "annotation 2: its segmentation is no list of polygons",
    ),
    "runs": (
        lambda c: c["annotations"][1].update(segmentation={"size": [40, 56], "counts": [HUGE]}),
        "annotation 2: its run lengths add up",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE_NUMBERS)
def test_numbers_out_of_all_measure_are_named(name: str, tmp_path: Path) -> None:
    change, message = HUGE_NUMBERS[name]
    with pytest.raises(ValueError, match=rf"train\.json: {message}"):
        open_boxes(coco_with(tmp_path, change), True)


def test_ids_may_be_of_any_size(tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["annotations"][1]["id"] = HUGE
        for entry in content["annotations"]:
            entry["image_id"] += HUGE
            entry["category_id"] += HUGE
        for entry in content["images"] + content["categories"]:
            entry["id"] += HUGE

    expected = open_boxes(annotated_folder(tmp_path / "small", train=3, val=1), True)["train"]
    split = open_boxes(coco_with(tmp_path / "huge", rename), True, split="train")["train"]
    for i in range(3):
        small, huge = (load_target(each, i, True) for each in (expected, split))
        assert all((small[name] == huge[name]).all() for name in small)


@pytest.mark.parametrize("way", ["shares", "tiny"])
@pytest.mark.parametrize("name", ["COCO", "VOC"])
def test_boxes_in_shares_of_their_image_are_rejected(name: str, way: str, tmp_path: Path) -> None:
    def share(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["bbox"] = [
                value / 64 if way == "shares" or i > 1 else value for i, value in enumerate(entry["bbox"])
            ]

    data = coco_with(tmp_path / "coco", share)
    if name == "VOC":
        data = voc_folder(tmp_path / "voc", train=3, val=1)
        for file in (data / "train" / "Annotations").iterdir():
            text = re.sub(r"<(xmin|ymin)>.*?<", r"<\1>0.2<", file.read_text())
            file.write_text(re.sub(r"<(xmax|ymax)>.*?<", r"<\1>0.5<", text))
    with pytest.raises(
        ValueError, match=r"no box is larger than a pixel, the first is 0\.\d+ × 0\.\d+: .*multiply"
    ):
        open_boxes(data, False)


def test_a_file_without_classes_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.json: it names no categories: at least one is needed"):
        open_boxes(coco_with(tmp_path, lambda c: c.update(categories=[], annotations=[])), False)


def test_an_xml_file_alone_is_recognized(tmp_path: Path) -> None:
    found = recognize(voc_folder(tmp_path / "data", train=1, val=1) / "train" / "Annotations" / "0.xml")
    assert found is not None
    assert found.name == "annotations in Pascal VOC's format"
    assert "give the folder" in found.advice


def test_names_and_texts_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"stra\xdfe.png")
    config = "train: train.txt\nnames: [bright, dark]"
    yolo, voc = yolo_folder(tmp_path / "yolo", config=config), voc_folder(tmp_path / "voc", "VOC")
    masks = annotated_folder(tmp_path / "masks", train=3, val=1)
    (yolo / "images/train/0.png").rename(yolo / "images" / "train" / name)
    (yolo / "labels/train/0.txt").rename(yolo / "labels" / "train" / f"{name[:-4]}.txt")
    (yolo / "train.txt").write_bytes(b"images/train/stra\xdfe.png\n")
    (voc / "JPEGImages/train0.png").rename(voc / "JPEGImages" / name)
    (voc / "Annotations/train0.xml").rename(voc / "Annotations" / f"{name[:-4]}.xml")
    (voc / "ImageSets/Main/train.txt").write_bytes(b"stra\xdfe\n")
    for kind in ("images", "masks"):
        (masks / kind / "train" / "0.png").rename(masks / kind / "train" / name)
    assert [Path(n).name for data in (yolo, voc) for n in open_boxes(data, False)["train"].names] == [
        name
    ] * 2
    assert name in open_masks(masks)["train"].names
    for encoding in ("latin-1", "utf-8"):
        table = yolo / "images" / "train" / "labels.csv"
        table.write_text("image,label\nstraße.png,süß\n1.png,b\n", encoding=encoding)
        source = open_sources(DataConfig(data=str(table)))["train"]
        assert ([source.name(i) for i in range(2)], source.classes) == ([name, "1.png"], ["b", "süß"])
    (yolo / "data.yaml").write_bytes(b"train: images/train\nnames: [s\xfc\xdf]")
    (masks / "train.json").write_bytes(
        b'{"images": [], "annotations": [], "categories": [{"name": "s\xfc\xdf"}]}'
    )
    for data, file in ((yolo, "data.yaml"), (masks, "train.json")):
        with pytest.raises(ValueError, match=f"{file} is not UTF-8: save it as such"):
            open_boxes(data, False)
