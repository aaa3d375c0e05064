"""No annotated image is trained on and held out, whatever a format calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from atconv.data.annotated_splits import drop_copies, save_or_check_split, train_val_test_split
from atconv.data.formats import open_boxes, open_masks
from atconv.data.run_images import RunImages
from atconv.engine.run import Run
from support.tiny import read_rows
from support.tiny_dense import annotated_folder


def opened(data: Path, masks: bool, check: Any = "decode") -> dict[str, Any]:
    return dict(open_masks(data, check) if masks else open_boxes(data, False, check))


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_a_copy_in_a_later_split_leaves_the_earlier_one(
    masks: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = annotated_folder(tmp_path / "data", train=5, val=2)
    for kind in ("images", "masks"):
        shutil.copy(data / kind / "val" / "1.png", data / kind / "train" / "1.png")
    # The copied image has the size that train.json has for it: sizes repeat by position.
    splits = drop_copies(opened(data, masks), 0.0, tmp_path / "skipped.csv")
    assert [len(split) for split in splits.values()] == [4, 2]
    assert "1.png" not in splits["train"].names
    [row] = read_rows(tmp_path / "skipped.csv")
    assert row == {"split": "train", "file": "1.png", "reason": "same image as val/1.png"}
    assert "left out 1 file, listed in" in caplog.text
    assert "1 of them is in another split too" in caplog.text


@pytest.mark.parametrize("check", ["decode", "none"])
def test_splits_of_one_file_of_images_that_overlap(check: Any, tmp_path: Path) -> None:
    """YOLO's train may be a folder that val lies in."""
    data = tmp_path / "yolo"
    source = annotated_folder(tmp_path / "source", train=4, val=2)
    for split in ("train", "val"):
        for image in (source / "images" / split).iterdir():
            place = data / "images" / split / f"{split}{image.name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, place)
            label = data / "labels" / split / f"{place.stem}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.2 0.2\n")
    config = data / "data.yaml"
    config.write_text("train: [images/train, images/val]\nval: images/val\nnames: [dark]\n")
    splits = drop_copies(opened(data, False, check), 0.0, tmp_path / "skipped.csv")
    assert {name: len(split) for name, split in splits.items()} == {"train": 4, "val": 2}
    assert len(read_rows(tmp_path / "skipped.csv")) == 2
    config.write_text("train: images/train\nval: images\nnames: [dark]\n")
    with pytest.raises(ValueError, match=r"all images of the train split .* are in a later split too"):
        drop_copies(opened(data, False, check), 0.0, tmp_path / "skipped.csv")


def test_copies_stay_together_where_images_are_held_out(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=9, val=1)
    for i in (3, 6):
        shutil.copy(data / "images" / "train" / "0.png", data / "images" / "train" / f"{i}.png")
    train = {"train": opened(data, True)["train"]}
    for seed in range(8):
        for split in train_val_test_split(train, 0.3, seed).values():
            assert len({"0.png", "3.png", "6.png"} & set(split.names)) in (0, 3)


def test_without_files_left_out_an_earlier_list_is_gone(tmp_path: Path) -> None:
    (tmp_path / "skipped.csv").write_text("split,file,reason\ntrain,a.png,gone\n")
    drop_copies(opened(annotated_folder(tmp_path / "data", 2, 1), True), 0.0, tmp_path / "skipped.csv")
    assert not (tmp_path / "skipped.csv").exists()


def test_what_a_run_was_trained_on_is_known_wherever_else_it_lies(tmp_path: Path) -> None:
    content = {"train": ["a", "b"], "val": ["c", "b"], "digests": {"train": ["1", "2"], "val": ["1", "3"]}}
    (tmp_path / "split.json").write_text(json.dumps(content))
    known = RunImages(Run(tmp_path))
    assert known.count_trained(["x", "y", "z"], ["1", "2", "3"]) == 2


@pytest.mark.parametrize("damage", [{"train": {"q": [None]}}, {"annotations": {}}, {"annotations": None}])
def test_a_damaged_list_of_splits_is_not_blamed_on_the_data(damage: dict[str, Any], tmp_path: Path) -> None:
    splits = opened(annotated_folder(tmp_path / "data", 2, 1), True)
    file = tmp_path / "split.json"
    save_or_check_split(file, splits)
    save_or_check_split(file, splits)
    file.write_text(json.dumps({**json.loads(file.read_text()), **damage}))
    with pytest.raises(ValueError, match=r"split\.json is damaged"):
        save_or_check_split(file, splits)


@pytest.mark.parametrize("masks", [False, True])
def test_a_test_split_with_the_images_of_val_is_no_test(
    masks: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = opened(annotated_folder(tmp_path / "data", train=3, val=2), masks)
    kept = drop_copies({**splits, "test": splits["val"]}, 0.0, tmp_path / "skipped.csv")
    assert {name: len(split) for name, split in kept.items()} == {"train": 3, "val": 2}
    assert "have the same images: they are val, and no test" in caplog.text


def test_data_without_a_training_split_says_what_it_has() -> None:
    nothing: Any = None
    with pytest.raises(ValueError, match="no training split, only val, test: give one named train"):
        train_val_test_split({"val": nothing, "test": nothing}, 0.1, 0)
