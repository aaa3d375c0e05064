"""COCO files: what is read, and that what is wrong with one is named."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.multiprocessing  # noqa: F401  (hands tensors on in shared memory)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from atconv.data.annotated_splits import save_or_check_split, train_val_test_split
from atconv.data.boxes.split import decode_mask, encode_mask
from atconv.data.formats import open_boxes, open_masks, recognize
from atconv.engine.run import Run
from atconv.tasks.detection.data import load_target
from studies.datasets.scenes import _run_lengths
from support.tiny_dense import CLASSES, annotated_folder, annotations, shared_data


def test_boxes_labels_and_masks_are_those_of_the_file() -> None:
    split = open_boxes(shared_data(), True)["train"]
    assert split.classes == [CLASSES[1], CLASSES[0]]  # in the order of their ids
    pixels = np.asarray(split.read(0, "L"))
    for box in split.boxes(0):
        left, top, right, bottom = (int(x) for x in box.corners)
        mask = decode_mask(box.segmentation, *pixels.shape)
        assert mask.sum() == (right - left) * (bottom - top) == mask[top:bottom, left:right].sum()
    uppermost = split.boxes(0)[-1]
    assert split.classes[uppermost.label - 1] == CLASSES[1]
    left, top, right, bottom = (int(x) for x in uppermost.corners)
    assert (pixels[top:bottom, left:right] == 240).all()


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_run_lengths_give_the_mask_back(rows: list[list[bool]]) -> None:
    mask = np.array(rows)
    height, width = mask.shape
    content = {"size": [height, width], "counts": _run_lengths(mask)}
    assert sum(content["counts"]) == mask.size
    assert np.array_equal(decode_mask(content, height, width), mask)


def test_without_splits_some_images_are_held_out(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=10)
    (data / "train.json").rename(data / "annotations.json")
    (data / "val.json").unlink()
    (data / "images" / "train").rename(data / "unsorted")
    (data / "images" / "val").rename(data / "unused")
    (data / "images").rmdir()
    (data / "unsorted").rename(data / "images")
    opened = open_boxes(data, False)
    assert list(opened) == ["train"]
    splits = train_val_test_split(opened, 0.3, seed=1)
    assert (len(splits["train"]), len(splits["val"])) == (7, 3)
    assert sorted(splits["train"].names + splits["val"].names) == sorted(opened["train"].names)
    assert splits["val"].names == train_val_test_split(opened, 0.3, seed=1)["val"].names
    assert any(
        splits["val"].names != train_val_test_split(opened, 0.3, seed)["val"].names for seed in range(2, 6)
    )


def annotation(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][1].update(changes)


def image(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["images"][1].update(changes)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "image id": (annotation(image_id=9), "annotation 2: no image has the id 9"),
    "category": (annotation(category_id=9), r"annotation 2: no category has the id 9 \(there are 3, 7\)"),
    "width": (annotation(bbox=[3, 4, 0, 5]), r"annotation 2: its box \[3, 4, 0, 5\] has no extent"),
    "negative": (annotation(bbox=[3, 4, 5, -5]), "annotation 2: .* has no extent"),
    "outside": (
        annotation(bbox=[30, 4, 50, 5]),
        "annotation 2: .* reaches out of its image of 56 × 40 pixels",
    ),
    "far outside": (annotation(bbox=[-9, 4, 20, 5]), "annotation 2: .* reaches out of its image"),
    "no box": (annotation(bbox=[3, 4, 5]), "annotation 2: its box is .*: give left, top, width, height"),
    "text": (annotation(bbox=[3, 4, 5, "6"]), "annotation 2: its box is"),
    "not a number": (annotation(bbox=[3, 4, 5, float("nan")]), "annotation 2: its box is"),
    "polygon": (
        annotation(segmentation=[[1, 2, 3, 4]]),
        "annotation 2: a polygon of 4 numbers: three points",
    ),
    "odd polygon": (annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 2: a polygon of 7 numbers"),
    "no mask": (annotation(segmentation=[]), "annotation 2: it has no segmentation"),
    "mask size": (
        annotation(segmentation={"size": [2, 2], "counts": [4]}),
        "annotation 2: its run lengths are",
    ),
    "runs": (
        annotation(segmentation={"size": [40, 56], "counts": [4]}),
        "annotation 2: its run lengths add up to 4",
    ),
    "inverted": (annotation(bbox=[-1, 4, 0.5, 5]), "annotation 2: nothing of its box .* lies in its image"),
    "hairline": (annotation(bbox=[50, 4, 1e-7, 5]), "annotation 2: nothing of its box"),
    "broken runs": (
        annotation(segmentation={"size": [40, 56], "counts": "abc"}),
        "annotation 2: its segmentation cannot be decoded",
    ),
    "no runs": (
        annotation(segmentation={"size": [40, 56], "counts": [2240]}),
        "annotation 2: its segmentation covers no pixel",
    ),
    "a line": (annotation(segmentation=[[1, 1, 5, 5, 9, 9]]), "annotation 2: its segmentation covers no"),
    "a polygon outside": (
        annotation(segmentation=[[90, 90, 99, 90, 99, 99]]),
        "annotation 2: a polygon reaches out of its image of 56 × 40 pixels",
    ),
    "a polygon far outside": (
        annotation(segmentation=[[1, 1, 1e7, 1, 1e7, 30]]),
        "annotation 2: a polygon reaches out of its image",
    ),
    "a mask outside its box": (
        annotation(bbox=[2, 2, 5, 5], segmentation=[[30, 30, 39, 30, 39, 39]]),
        "annotation 2: its segmentation lies outside its box",
    ),
    "a huge number": (annotation(bbox=[3, 4, 5, 10**30]), "annotation 2: its box is"),
    "an annotation that is a list": (
        lambda content: content["annotations"].insert(1, [1]),
        r"annotations, number 2 is no object: \[1\]",
    ),
    "an image that is null": (
        lambda content: content["images"].append(None),
        r"images, number 4 is no object",
    ),
    "negative runs": (
        annotation(segmentation={"size": [40, 56], "counts": [-5, 2245]}),
        "annotation 2: its run lengths are not whole numbers",
    ),
    "area": (annotation(area="5"), "annotation 2: its area must be a number"),
    "crowd": (annotation(iscrowd="0"), "annotation 2: its area must be a number and its iscrowd 0 or 1"),
    "list of ids": (annotation(image_id=[1]), r"annotation 2: no image has the id \[1\]"),
    "width in words": (image(width="56"), "image 101: width and height must be whole numbers"),
    "file name": (image(file_name=None), "image 101: id must be a whole number or a name, file_name a name"),
    "mixed ids": (
        lambda content: content["categories"][1].update(id="3"),
        "category '3': ids must be whole numbers",
    ),
    "category twice": (
        lambda content: content["categories"][1].update(id=7),
        "category 7: another category has th",
    ),
    "missing box": (
        lambda content: content["annotations"][1].pop("bbox"),
        "annotation 2: bbox missing: fix it",
    ),
    "missing file": (image(file_name="none.png"), r"image 101: .*none.png does not exist: put it back"),
    "two names": (image(file_name="0.png"), "image 101: another image has file_name '0.png'"),
    "size": (image(width=55), "image 101: .*1.png is 40 × 56 pixels and not 55 × 56"),
    "no images": (lambda content: content.update(images=[]), "lists no images"),
    "not COCO": (lambda content: content.pop("categories"), "has no list 'categories'"),
    "two categories": (lambda content: content["categories"][0].update(name="bright"), "two of one name"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    change, message = WRONG[wrong]
    content = json.loads((data / "train.json").read_text())
    change(content)
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        open_boxes(data, True)
    assert str(data / "train.json") in str(caught.value)


def test_files_that_are_broken_or_missing_are_named(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", train=3, val=1)
    file = data / "images" / "train" / "2.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"train.json: image 102: .*2.png: not a readable image"):
        open_boxes(data, False)
    assert open_boxes(data, False, check_images="none")["train"].names == ["0.png", "1.png", "2.png"]
    (data / "val.json").write_text("{")
    with pytest.raises(ValueError, match=r"val.json is not readable JSON"):
        open_boxes(data, False, check_images="none")
    with pytest.raises(ValueError, match="none does not exist: give a folder with images/"):
        open_boxes(tmp_path / "none", False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no boxes in a format that is read here: give a folder"):
        open_boxes(tmp_path / "empty", False)


def test_many_problems_are_counted_and_unknown_categories_named(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=5, val=1)
    content = json.loads((data / "train.json").read_text())
    for entry in content["annotations"]:
        entry["bbox"][2] = 0
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="and 5 more"):
        open_boxes(data, False)
    with pytest.raises(ValueError, match=r"its categories dark are not among the classes bright, cat"):
        open_boxes(annotated_folder(tmp_path / "b", 2, 1), False, classes=["bright", "cat"])


def test_wrong_annotations_are_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    full = open_boxes(data, True)["train"]
    content = json.loads((data / "train.json").read_text())
    content["annotations"][1]["bbox"][2] = 0
    content["annotations"][2]["segmentation"] = []
    del content["annotations"][3]["bbox"]
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"ion 2: .*ion 3: .*ion 4: .*\(--bad-annotations skip leaves"):
        open_boxes(data, True)
    split = open_boxes(data, True, bad_annotations="skip")["train"]
    message = "3 annotations are left out: annotation 2: its box .*; annotation 3: "
    assert re.search(message, caplog.text)
    bad = {2, 3, 4}
    kept = [[box for box in full.boxes(i) if box.id not in bad] for i in range(len(full))]
    assert [split.boxes(i) for i in range(len(split))] == kept
    assert sum(map(len, kept)) == len(content["annotations"]) - 3


@settings(deadline=None, max_examples=25)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_run_lengths_say_what_the_mask_says(mask: NDArray[np.bool_]) -> None:
    encoded = json.loads(json.dumps(encode_mask(mask)))
    assert (decode_mask(encoded, *mask.shape) == mask).all()


def test_a_rotated_image_is_measured_upright(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=2, val=1)
    content = json.loads((data / "train.json").read_text())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 56)).save(data / "images" / "train" / "0.jpg", exif=exif)
    content["images"][0]["file_name"] = "0.jpg"  # 56 × 40 when upright
    (data / "train.json").write_text(json.dumps(content))
    content["annotations"] = [c for c in content["annotations"] if c["image_id"] != 100]
    content["annotations"].append({"id": 99, "image_id": 100, "category_id": 7, "bbox": [50, 2, 6, 30]})
    (data / "train.json").write_text(json.dumps(content))
    how: Any
    for how in ("decode", "header"):
        split = open_boxes(data, False, check_images=how)["train"]
        assert (split.size(0), split.turn(0)) == ((40, 56), 1)  # height and width
        assert [box.corners for box in split.boxes(0)] == [
            (50, 2, 56, 32)
        ]  # as it is, not clipped to 40 × 56


def test_coco_is_read_as_it_comes(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=2)
    plain = open_boxes(data, True)
    (data / "annotations").mkdir()
    for split in ("train", "val"):
        (data / f"{split}.json").rename(data / "annotations" / f"instances_{split}2017.json")
        (data / "images" / split).rename(data / f"{split}2017")
    opened = open_boxes(data, True)
    assert {name: annotations(split) for name, split in opened.items()} == {
        name: annotations(split) for name, split in plain.items()
    }
    assert opened["val"].folder == data / "val2017"
    (data / "train.json").write_text("{}")
    with pytest.raises(ValueError, match=r"several annotation files for train: train.json, annotations/inst"):
        open_boxes(data, True)


@pytest.mark.parametrize(
    "layout", ["validation.json", "annotations/valid.json", "images/val2017", "roboflow"]
)
def test_other_layouts_are_read_alike(layout: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path)
    expected = {name: annotations(split) for name, split in open_boxes(data, False).items()}
    (data / "annotations").mkdir()
    if layout == "roboflow":
        for name, other in (("train", "train"), ("val", "valid")):
            (data / "images" / name).rename(data / other)
            (data / f"{name}.json").rename(data / other / "_annotations.coco.json")
    elif layout == "images/val2017":
        (data / "images" / "val").rename(data / "images" / "val2017")
        (data / "val.json").rename(data / "annotations" / "instances_val2017.json")
    else:
        (data / "images" / "val").rename(data / "images" / "validation")
        (data / "val.json").rename(data / layout)
    splits = open_boxes(data, False)
    assert {name: annotations(split) for name, split in splits.items()} == expected
    assert all(split.read(0, "L").size for split in splits.values())


def test_a_run_does_not_resume_with_other_annotations(tmp_path: Path) -> None:
    data, run = annotated_folder(tmp_path / "data", train=3, val=1), Run(tmp_path / "run")
    run.path.mkdir()
    for opened in (lambda: open_boxes(data, False), lambda: open_masks(data)):
        save_or_check_split(run.split, opened())
        save_or_check_split(run.split, opened())
        content = json.loads((data / "train.json").read_text())
        content["annotations"][0]["bbox"][2] -= 1
        (data / "train.json").write_text(json.dumps(content))
        Image.new("L", (40, 56), 1).save(data / "masks" / "train" / "1.png")
        with pytest.raises(ValueError, match="the images or annotations are not those that"):
            save_or_check_split(run.split, opened())
        run.split.unlink()
        Image.new("L", (40, 56), 0).save(data / "masks" / "train" / "1.png", compress_level=0)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=2, val=1)
    expected = annotations(open_boxes(data, True)["train"])
    for name in ("train.json", "classes.txt"):
        (data / name).write_text((data / name).read_text(), encoding="utf-8-sig")
    assert annotations(open_boxes(data, True)["train"]) == expected
    assert open_masks(data)["train"].classes[0] == "ground"


@pytest.mark.parametrize("ids", [[7, 7, 3], [None, None, 3], [[1], 1.0, 3]])
def test_annotations_without_an_id_of_their_own_are_named_by_position(ids: list[Any], tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    content = json.loads((data / "train.json").read_text())
    for entry, own in zip(content["annotations"], ids, strict=False):
        entry["id"] = own
    (data / "train.json").write_text(json.dumps(content))
    full = open_boxes(data, True)["train"]
    assert full.objects == len(content["annotations"])
    content["annotations"][1]["bbox"][2] = content["annotations"][2]["bbox"][2] = 0
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotation number 2: its box .*; annotation 3: its box"):
        open_boxes(data, True)
    left = open_boxes(data, True, bad_annotations="skip")["train"]
    assert left.objects == full.objects - 2


def test_areas_that_the_file_lacks_are_those_of_masks_or_boxes(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    content = json.loads((data / "train.json").read_text())
    first, second = content["annotations"][:2]
    assert first["image_id"] == second["image_id"]
    left, top, width, height = first["bbox"]
    first["segmentation"] = [[left, top, left + width, top, left, top + height]]
    second["area"] = 5
    (data / "train.json").write_text(json.dumps(content))
    split = open_boxes(data, True)["train"]
    assert load_target(split, 0, masks=False)["area"][:2].tolist() == [width * height, 5]
    target = load_target(split, 0, masks=True)
    assert target["area"][:2].tolist() == [target["masks"][0].sum(), 5]
    assert target["area"][0] < 0.7 * width * height


def test_null_areas_and_sizes_with_a_point_are_read(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    expected = annotations(open_boxes(data, True)["train"])
    content = json.loads((data / "train.json").read_text())
    for entry in content["annotations"]:
        entry |= {"area": None, "iscrowd": None}
    for entry in content["images"]:
        entry |= {"width": float(entry["width"]), "height": float(entry["height"])}
    (data / "train.json").write_text(json.dumps(content))
    assert annotations(open_boxes(data, True)["train"]) == expected


@pytest.mark.parametrize("name", ["annotations/instances_default.json", "result.json"])
def test_one_file_alone_is_read_under_its_tools_name(name: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    expected = annotations(open_boxes(data, False, split="train")["train"])
    (data / "annotations").mkdir()
    (data / "train.json").rename(data / name)
    (data / "val.json").unlink()
    assert annotations(open_boxes(data, False)["train"]) == expected


def test_instances_are_named_after_splits_in_any_case(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    (data / "annotations").mkdir()
    (data / "train.json").rename(data / "annotations" / "instances_Train.json")
    (data / "val.json").rename(data / "annotations" / "instances_Validation.json")
    assert list(open_boxes(data, False)) == ["train", "val"]
    (data / "annotations" / "instances_Train.json").rename(data / "annotations" / "instances_a.json")
    (data / "annotations" / "instances_Validation.json").rename(data / "annotations" / "instances_b.json")
    with pytest.raises(ValueError, match=r"instances_a\.json, instances_b\.json, none named after a split"):
        open_boxes(data, False)


@pytest.mark.parametrize("prefix", ["images/train/", "images\\train\\"])
def test_file_names_may_start_at_the_data_folder(prefix: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    expected = np.asarray(open_boxes(data, False)["train"].read(1, "L"))
    content = json.loads((data / "train.json").read_text())
    for entry in content["images"]:
        entry["file_name"] = prefix + entry["file_name"]
    (data / "train.json").write_text(json.dumps(content))
    assert np.array_equal(np.asarray(open_boxes(data, False)["train"].read(1, "L")), expected)


@pytest.mark.parametrize(
    "name",
    [
        "../../../0.png",
        "a/../../../../0.png",
        "/etc/passwd",
        "{data}/../0.png",
        "..\\..\\..\\0.png",
        "C:\\0.png",
    ],
)
def test_file_names_do_not_lead_out_of_the_data(name: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", train=3, val=1)
    (tmp_path / "0.png").write_bytes((data / "images" / "train" / "0.png").read_bytes())
    content = json.loads((data / "train.json").read_text())
    content["images"][1]["file_name"] = name.format(data=data)
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"image 101: its file_name .* leads out of .*/data: give a path inside"
    ):
        open_boxes(data, False, "none")


@pytest.mark.parametrize("name", ["{data}/images/train/1.png", "../../images/train/1.png", "linked.png"])
def test_file_names_may_lead_anywhere_in_the_data(name: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", train=3, val=1)
    expected = np.asarray(open_boxes(data, False)["train"].read(1, "L"))
    (data / "images" / "train" / "linked.png").symlink_to(
        shutil.copy(data / "images" / "train" / "1.png", tmp_path)
    )
    content = json.loads((data / "train.json").read_text())
    content["images"][1]["file_name"] = name.format(data=data)
    (data / "train.json").write_text(json.dumps(content))
    assert np.array_equal(np.asarray(open_boxes(data, False)["train"].read(1, "L")), expected)


@pytest.mark.parametrize("form", ["plain", "dots", "absolute", "upwards"])
def test_images_may_lie_in_a_folder_that_is_named(form: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", train=3, val=1)
    expected = annotations(open_boxes(data, False)["train"])
    photos = (data / "images").rename(tmp_path / "photos")
    names = {
        "plain": "",
        "dots": "../photos/train/",
        "absolute": f"{photos}/train/",
        "upwards": "../val/../train/",
    }
    content = json.loads((data / "train.json").read_text())
    for entry in content["images"]:
        entry["file_name"] = names[form] + entry["file_name"]
    (data / "train.json").write_text(json.dumps(content))
    split = open_boxes(data, False, images=photos)["train"]
    assert [row[1:] for row in annotations(split)] == [row[1:] for row in expected]
    assert all(split.path(i).is_file() for i in range(3))
    assert open_boxes(data, False, images=photos, split="train")["train"].read(0, "L").size == (56, 40)


@pytest.mark.parametrize("name", ["../../secret.png", "{tmp}/secret.png", "a/../../../secret.png"])
def test_names_do_not_leave_the_folder_of_images_that_is_named(name: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", train=3, val=1)
    photos = (data / "images").rename(tmp_path / "photos")
    shutil.copy(photos / "train" / "1.png", tmp_path / "secret.png")
    content = json.loads((data / "train.json").read_text())
    content["images"][1]["file_name"] = name.format(tmp=tmp_path)
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"image 101: its file_name .* leads out of .*/photos: "):
        open_boxes(data, False, images=photos)


@pytest.mark.parametrize("check", ["decode", "header"])
def test_each_image_is_opened_once_when_it_is_checked(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    opened: Counter[str] = Counter()
    original = Image.open

    def count(path: Any, *rest: Any, **options: Any) -> Any:
        opened[str(getattr(path, "name", path))] += 1
        return original(path, *rest, **options)

    monkeypatch.setattr(Image, "open", count)
    open_boxes(data, True, check)
    assert dict(opened) == {str(path): 1 for path in (data / "images").rglob("*.png")}
    opened.clear()
    open_masks(data, check)
    assert dict(opened) == {str(p): 1 for kind in ("images", "masks") for p in (data / kind).rglob("*.png")}


def test_processes_share_what_is_annotated(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=30, val=1)
    for split in (open_boxes(data, True)["train"], open_masks(data)["train"]):
        sizes = [len(ForkingPickler.dumps(part)) for part in (split, split.take([0]))]
        assert abs(sizes[0] - sizes[1]) < 100  # handles of shared memory, whatever it holds


def test_a_category_above_others_is_no_class(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        for category in content["categories"]:
            category["supercategory"] = "dark"
        content["categories"].insert(0, {"id": 0, "name": "dark", "supercategory": "none"})
        (data / f"{split}.json").write_text(json.dumps(content))
    assert open_boxes(data, False)["train"].classes == ["bright", "dark"]
    content["annotations"].append({**content["annotations"][0], "category_id": 0})
    (data / "val.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="two of one name"):
        open_boxes(data, False)


NAMES_OF_TOOLS = {
    "instances_Train.json instances_Val.json": "images/train images/val",
    "Annotations/Instances_Train2017.JSON Annotations/Instances_Val2017.JSON": "Images/train Images/val",
    "train_annotations.json val_annotations.json": "images/train images/val",
    "annotations/annotations_train.coco.json annotations/coco_valid.json": "images/train images/val",
    "train/_Annotations.coco.json valid/_Annotations.coco.json": "train valid",
    "train/annotations.json val/labels.json": "train/images val/images",
    "Train.json Dev.json": "train dev",
}


@pytest.mark.parametrize("files", NAMES_OF_TOOLS)
def test_files_are_found_under_any_usual_name(files: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    expected = {name: annotations(split) for name, split in open_boxes(data, False).items()}
    shutil.rmtree(data / "masks")
    (data / "images").rename(data / "kept")
    for split, file, folder in zip(
        ("train", "val"), files.split(), NAMES_OF_TOOLS[files].split(), strict=True
    ):
        (data / folder).parent.mkdir(parents=True, exist_ok=True)
        (data / "kept" / split).rename(data / folder)
        (data / file).parent.mkdir(parents=True, exist_ok=True)
        (data / f"{split}.json").rename(data / file)
    (data / "kept").rmdir()
    assert {name: annotations(split) for name, split in open_boxes(data, False).items()} == expected
    found = recognize(data)
    assert found is not None
    assert found.annotation == "boxes"


def test_keypoints_and_captions_beside_instances_are_passed_over(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    (data / "annotations").mkdir()
    for split in ("train", "val"):
        file = (data / f"{split}.json").rename(data / "annotations" / f"instances_{split}2017.json")
        for other in ("person_keypoints", "captions", "stuff"):
            shutil.copy(file, data / "annotations" / f"{other}_{split}2017.json")
    assert [split.where.name[:9] for split in open_boxes(data, False).values()] == ["instances"] * 2


@pytest.mark.parametrize(
    "roots",
    [
        [("things", "none", "things")],
        [("dark", "none", "")],
        [("dark", "dark", "dark")],
        [("all", "", ""), ("some", "all", "some")],
    ],
    ids=["above", "same name", "above itself", "two levels"],
)
def test_root_categories_are_no_classes_in_any_split(
    roots: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        for i, (name, parent, above) in enumerate(roots):
            for category in content["categories"] if above else []:
                category["supercategory"] = (
                    above if category["name"] in CLASSES else category["supercategory"]
                )
            content["categories"].insert(0, {"id": 90 + i, "name": name, "supercategory": parent})
        (data / f"{split}.json").write_text(json.dumps(content))
    assert [split.classes for split in open_boxes(data, False).values()] == [["bright", "dark"]] * 2


def test_images_that_are_held_out_have_objects(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=12, val=1)
    content = json.loads((data / "train.json").read_text())
    for entry in content["annotations"]:
        entry["iscrowd"] = int(entry["image_id"] not in (104, 107))
    (data / "train.json").write_text(json.dumps(content))
    train = {"train": open_boxes(data, False)["train"]}
    for seed in range(20):
        splits = train_val_test_split(train, 0.25, seed)
        assert [split.objects for split in splits.values()] == [2, 2]
        assert sorted(splits["train"].names + splits["val"].names) == sorted(train["train"].names)
