"""What tools have left among annotated images, and images and annotations that lack their other half."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atconv.data.annotated_splits import drop_copies
from atconv.data.formats import open_boxes, open_masks
from atconv.data.unreadable import TooManyUnreadable
from support.box_formats import voc_folder, yolo_folder
from support.tiny import read_rows
from support.tiny_dense import annotated_folder

SIZES = {"train": 4, "val": 1}
TOOLS = (".ipynb_checkpoints", "@eaDir")
FORMATS: dict[str, tuple[Callable[..., Path], str, str]] = {
    "COCO": (annotated_folder, "images/train", ""),
    "masks": (annotated_folder, "images/train", "masks/train"),
    "YOLO": (yolo_folder, "images/train", "labels/train"),
    "YOLO, side by side": (
        lambda root, **sizes: yolo_folder(root, "side by side", **sizes),
        "train",
        "train",
    ),
    "VOC": (voc_folder, "train/JPEGImages", "train/Annotations"),
    "VOC, side by side": (lambda root, **sizes: voc_folder(root, "side by side", **sizes), "train", "train"),
}
"""a folder, and where the images and the annotations of its training split lie"""


def opened(name: str, data: Path, **options: Any) -> Any:
    return open_masks(data, **options) if name == "masks" else open_boxes(data, False, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_folders_of_tools_are_passed_over_and_named(name: str, tmp_path: Path, caplog: Any) -> None:
    make, *places = FORMATS[name]
    data = make(tmp_path / "data", **SIZES)
    for place in {*places} - {""}:
        for tool in TOOLS:
            shutil.copytree(data / place, data / place / tool, ignore=shutil.ignore_patterns(*TOOLS))
        for file in [*(data / place).iterdir()]:
            if file.is_file():
                (file.with_name(f"._{file.name}")).write_bytes(b"\0\5\x16\7")
    shutil.copytree(data, data / "@tmp", ignore=shutil.ignore_patterns("@tmp"))
    splits = opened(name, data)
    assert {split: len(split_) for split, split_ in splits.items()} == SIZES
    assert caplog.text.count("data: @tmp") == 1
    assert caplog.text.count(f"{places[0]}: .ipynb_checkpoints, @eaDir") == 1
    assert "no image" not in caplog.text


def test_two_files_of_one_image_are_named(tmp_path: Path) -> None:
    data = voc_folder(tmp_path / "data", **SIZES)
    (data / "train" / "Annotations" / "old").mkdir()
    shutil.copy(data / "train" / "Annotations" / "3.xml", data / "train" / "Annotations" / "old")
    with pytest.raises(ValueError, match=r"old/3\.xml: 3\.png has 3\.xml too: remove one"):
        open_boxes(data, False)
    assert len(open_boxes(data, False, bad_annotations="skip")["train"].names) == SIZES["train"]


@pytest.mark.parametrize("half", ["image", "annotation"])
@pytest.mark.parametrize("name", FORMATS)
def test_what_lacks_its_other_half_is_missing_up_to_the_limit(name: str, half: str, tmp_path: Path) -> None:
    make, images, annotations = FORMATS[name]
    if half == "annotation" and (name.startswith("YOLO") or name == "COCO"):
        pytest.skip("an image without them has nothing in it")
    data = make(tmp_path / "data", **SIZES)
    folder = data / (images if half == "image" else annotations)
    suffix = ".xml" if half == "annotation" and "VOC" in name else ".png"
    stems = [p.stem for p in sorted(folder.glob(f"*{suffix}"))]
    for stem in stems[1:3]:
        (folder / f"{stem}{suffix}").unlink()
    with pytest.raises(ValueError, match=rf"{stems[1]}.*: (add it, or|put it back, or) remove"):
        opened(name, data)
    splits = opened(name, data, skip_unreadable=True)
    assert len(splits["train"]) == SIZES["train"] - 2
    with pytest.raises(TooManyUnreadable, match="2 of 5 files are unreadable"):
        drop_copies(splits, 0.3, tmp_path / "skipped.csv")
    drop_copies(splits, 0.4, tmp_path / "skipped.csv")
    rows = read_rows(tmp_path / "skipped.csv")
    assert [(row["split"], Path(row["file"]).stem) for row in rows] == [
        ("train", stem) for stem in stems[1:3]
    ]
