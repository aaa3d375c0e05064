"""A look at DATA finds each fault that is planted, and nothing in data without faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atconv.data.checks.annotations import _twice
from atconv.data.checks.check import FINDINGS, DataReport, check_data, open_data
from atconv.data.checks.neighbors import unit_vectors
from atconv.data.config import DataConfig, MaskOptions
from atconv.data.nearest import nearest_blocks
from support.box_formats import voc_folder, yolo_folder
from support.doc_commands import small
from support.tiny_dense import annotated_folder

CLASSES = ("cat", "dog", "fox")
PER_CLASS = 8


def photo(rng: np.random.Generator, label: int) -> Image.Image:
    """Even noise, with more of one color."""
    low = rng.integers(0, 120, (5, 7, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(low).resize((56, 40), Image.Resampling.BICUBIC)).copy()
    pixels[..., label] += 100
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes in two splits."""
    rng, root = np.random.default_rng(0), tmp_path / "photos"
    for split, count in (("train", PER_CLASS), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                photo(rng, label).save(root / split / name / f"{i}.png")
    return root


def look(data: Path, embed: Any = None, masks: MaskOptions | None = None) -> DataReport:
    masks = masks or MaskOptions()
    return check_data(str(data), open_data(DataConfig(data=str(data)), masks), 0.95, embed)


def found(report: DataReport) -> set[tuple[str, str, str]]:
    return {(finding.kind, finding.split, finding.file) for finding in report.findings}


def mean_color(split: str, images: Any, positions: Any) -> Any:
    rows = [np.asarray(images.read(int(i), "RGB"), np.float16).mean((0, 1)) for i in positions]
    return np.array(rows, np.float16).reshape(-1, 3)


def test_data_without_faults_has_no_findings(photos: Path) -> None:
    report = look(photos)
    assert report.findings == []
    assert report.to_dict()["classes"]["train"] == dict.fromkeys(CLASSES, PER_CLASS)
    assert report.table().rows[0] == [
        "train", "24", "0", "56 × 40", "56 × 40", "56 × 40", "24 color",
    ]  # fmt: skip


def test_copies_by_bytes(photos: Path) -> None:
    shutil.copy(photos / "train/cat/0.png", photos / "val/cat/other.png")
    shutil.copy(photos / "train/dog/1.png", photos / "train/dog/again.png")
    shutil.copy(photos / "val/fox/2.png", photos / "val/dog/fox.png")
    assert found(look(photos)) == {
        ("copy in another split", "train", "cat/0.png"),
        ("copy", "train", "dog/again.png"),
        ("copy with another label", "val", "fox/2.png"),
    }


def test_an_image_saved_again_in_another_split(photos: Path) -> None:
    image = Image.open(photos / "train/dog/3.png")
    image.save(photos / "val/dog/again.jpg", quality=50)
    image.resize((84, 60)).save(photos / "val/cat/larger.png")
    report = look(photos)
    assert found(report) == {("near copy in another split", "train", "dog/3.png")}
    image.save(photos / "train/dog/near.jpg", quality=50)  # in one split alone that is no leak
    assert len(look(photos).findings) == 2


def test_near_copies_where_data_will_be_split(photos: Path) -> None:
    Image.open(photos / "train/dog/3.png").save(photos / "train/dog/again.jpg", quality=50)
    assert [finding.kind for finding in look(photos / "train").findings] == ["near copy"]


def test_even_images_are_no_copies_of_each_other(photos: Path) -> None:
    for split, gray in (("train", 90), ("val", 120)):
        Image.new("RGB", (56, 40), (gray,) * 3).save(photos / split / "cat" / "even.png")
    assert look(photos).findings == []


def test_a_flipped_label_is_the_most_suspicious(photos: Path) -> None:
    (photos / "train/cat/5.png").rename(photos / "train/dog/flipped.png")
    report = look(photos, mean_color)
    wrong = [finding for finding in report.findings if finding.kind == "likely wrong label"]
    assert [finding.file for finding in wrong] == ["dog/flipped.png"]
    assert wrong[0].detail == "labeled dog; 10 of the 10 images most like it are cat"
    split, index = wrong[0].other or ("", 0)
    assert report.facts[split].images.name(index).startswith("cat/")


def test_no_label_is_suspicious_where_an_image_has_several(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for i in range(12):
        photo(rng, i % 3).save(tmp_path / f"{i}.png")
    (tmp_path / "tags.csv").write_text(
        "image,tags\n" + "".join(f"{i}.png,a{';b' * (i % 2)}\n" for i in range(12))
    )
    report = look(tmp_path, mean_color)
    assert "likely wrong label" not in report.counts
    assert report.to_dict()["classes"]["train"] == {"a": 12, "b": 6}


def test_unreadable_unusual_and_turned_images(photos: Path) -> None:
    damaged = photos / "train/fox/1.png"
    damaged.write_bytes(damaged.read_bytes()[:600])
    Image.open(photos / "train/fox/2.png").convert("L").save(photos / "train/fox/2.png")
    Image.fromarray(np.arange(40 * 56, dtype=np.uint16).reshape(40, 56)).save(photos / "val/fox/2.png")
    photo(np.random.default_rng(3), 1).resize((300, 20)).save(photos / "train/dog/wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(photos / "train/dog/4.png").transpose(Image.Transpose.ROTATE_90)
    turned.save(photos / "train/dog/4.png", exif=exif)
    report = look(photos)
    assert found(report) == {
        ("unreadable", "train", "fox/1.png"),
        ("unusual channels", "train", "fox/2.png"),
        ("unusual channels", "val", "fox/2.png"),
        ("unusual shape", "train", "dog/wide.png"),
    }
    assert "16-bit gray; most are color" in {finding.detail for finding in report.findings}
    assert list(report.counts) == [kind for kind in FINDINGS if kind in report.counts]


def test_a_split_without_a_readable_image(photos: Path) -> None:
    for file in (photos / "val").rglob("*.png"):
        file.write_bytes(b"no image")
    assert look(photos, mean_color).counts["unreadable"] == 12


def test_arrays_are_looked_at_too() -> None:
    with small():
        report = look(Path("digits"))
    assert report.table().rows[0] == ["train", "300", "0", "8 × 8", "8 × 8", "8 × 8", "300 gray"]
    assert len(report.findings) < 3  # scans of one digit are alike, and no copies


def test_what_is_not_read_is_said(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "train" / "cat" / "notes.doc").touch()
    look(photos)
    assert "files of other kinds" in caplog.text
    assert "1 .doc" in caplog.text


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return annotated_folder(tmp_path / "street", train=6, val=2)


def edited(file: Path) -> Iterator[Any]:
    content = json.loads(file.read_text())
    yield content
    file.write_text(json.dumps(content))


def test_boxes_outside_tiny_and_twice(coco: Path) -> None:
    assert look(coco).findings == []
    for content in edited(coco / "train.json"):
        boxes = content["annotations"]
        boxes[0]["bbox"] = [50, 30, 30, 30]  # image 100, 56 × 40
        boxes[2]["bbox"] = [3, 3, 3, 9]  # image 101
        boxes.append({**boxes[4], "id": 99, "category_id": 3})  # image 102, under the other class
        content["images"][3]["width"] += 1
    report = look(coco)
    assert found(report) == {
        ("wrong annotation", "train", "0.png"),
        ("tiny box", "train", "1.png"),
        ("box twice", "train", "2.png"),
        ("other size", "train", "3.png"),
    }
    details = {finding.kind: finding.detail for finding in report.findings}
    assert details["tiny box"] == "1 of 2 boxes, the smallest 3 × 9 pixels in 40 × 56"
    assert details["box twice"] == "1 pair of boxes in one place: bright and dark"
    assert "reaches out of its image of 56 × 40 pixels" in details["wrong annotation"]
    tiny = next(finding for finding in report.findings if finding.kind == "tiny box")
    np.testing.assert_allclose(tiny.boxes, [[3 / 40, 3 / 56, 6 / 40, 12 / 56]])
    assert report.to_dict()["classes"]["train"] == {"bright": 7, "dark": 5}


@pytest.mark.parametrize("make", [yolo_folder, voc_folder])
def test_boxes_in_other_formats(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "data", train=4, val=2)
    assert look(folder).findings == []
    file = sorted(folder.rglob("*.txt" if make is yolo_folder else "*.xml"))[0]
    if make is yolo_folder:
        file.write_text(file.read_text() + "0 0.5 0.5 1.5 0.2\n1 0.5 0.5 0.02 0.5\n")
    else:
        outside = (
            "<object><name>dark</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>400</xmax><ymax>20</ymax>"
        )
        tiny = "<object><name>dark</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>10</xmax><ymax>30</ymax>"
        added = "".join(f"{each}</bndbox></object>" for each in (outside, tiny))
        file.write_text(file.read_text().replace("</annotation>", f"{added}</annotation>"))
    report = look(folder)
    assert report.counts == {"wrong annotation": 1, "tiny box": 1}
    assert len({(finding.split, finding.index) for finding in report.findings}) == 1


def test_masks_with_unknown_values_or_missing(coco: Path) -> None:
    for file in coco.glob("*.json"):
        file.unlink()
    assert look(coco).findings == []
    mask = np.array(Image.open(coco / "masks/train/0.png"))
    mask[:2] = 9
    Image.fromarray(mask).save(coco / "masks/train/0.png")
    Image.open(coco / "masks/train/1.png").resize((20, 20)).save(coco / "masks/train/1.png")
    (coco / "masks/train/2.png").unlink()
    (coco / "images/train/3.png").unlink()
    report = look(coco)
    assert found(report) == {
        ("wrong annotation", "train", "0.png"),
        ("other size", "train", "1.png"),
        ("wrong annotation", "train", "2.png"),
        ("unreadable", "train", "3.png"),
    }
    details = {finding.file: finding.detail for finding in report.findings}
    assert details["0.png"].startswith("0.png holds 9 (112 pixels)")
    assert "has no image" in details["3.png"]
    assert report.to_dict()["classes"]["val"] == {"ground": 2, "dark": 2, "bright": 2}
    assert ("wrong annotation", "train", "0.png") not in found(
        look(coco, None, MaskOptions(ignored_values=(9,)))
    )


def test_annotations_of_turned_images_are_unclear_where_sizes_do_not_tell(coco: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(coco / "images/train/0.png").save(coco / "images/train/0.png", exif=exif)
    assert found(look(coco)) == {("unclear orientation", "train", "0.png")}


def test_neighbors_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = unit_vectors({"a": rng.normal(size=(23, 6)).astype(np.float16)})["a"]
    monkeypatch.setattr("atconv.data.nearest._BLOCK", 7)
    products = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    _, similar, places = next(nearest_blocks(vectors, vectors, 2, own=True, above=1.0))
    assert (places == -1).all()
    assert (similar == 1).all()
    for own in (True, False):
        expected = products - 3 * np.eye(23) * own
        order = np.argsort(-expected, 1)[:, :4]
        blocks = list(nearest_blocks(vectors, vectors, 4, own))
        assert [start for start, _, _ in blocks] == [0, 7, 14, 21]
        np.testing.assert_array_equal(np.concatenate([places for _, _, places in blocks]), order)
        similar = np.concatenate([similar for _, similar, _ in blocks])
        np.testing.assert_allclose(similar, np.take_along_axis(expected, order, 1), atol=1e-6)


def test_boxes_in_one_place() -> None:
    boxes = np.array([[0, 0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0, 0, 0.4, 0.405], [0, 0, 0.4, 0.5]])
    assert _twice(boxes).tolist() == [[0, 2]]
