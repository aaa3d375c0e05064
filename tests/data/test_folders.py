"""Folders as people have them: names of splits, what tools leave, other suffixes, data of other tasks."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atconv.data.folders import choose_split, split_of
from atconv.data.images import image_suffixes, read_image
from atconv.data.listing import list_images
from atconv.data.sources.digits import DigitsSource
from atconv.data.sources.folders import FolderSource
from atconv.data.sources.pack import pack_folder
from atconv.data.splits import Splits, load_splits, make_splits
from support.tiny import atconv, image_folder, read_rows, tiny_config, tiny_options, train_tiny, trained_run


def split(data: Path, run: Path, min_classes: int = 2) -> Splits:
    run.mkdir(exist_ok=True)
    config = tiny_config(data=str(data), in_chans=3, test_fraction=0.2, val_fraction=0.2)
    return make_splits(config, run, min_classes=min_classes)


def sizes(splits: Splits) -> dict[str, int]:
    return {name: len(part) for name, part in splits.by_name.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, "train")
            for name in ("train", "Train", "TRAINING", "train_set", "training-set", "trainset")
        ),
        *((name, "val") for name in ("val", "valid", "Validation", "dev", "val_set", "DevSet")),
        *((name, "test") for name in ("test", "Testing", "test set", "Test images", "test_imgs", "testdata")),
        *((name, None) for name in ("trains", "set", "sunset", "evaluate", "", "images", "train_labels")),
    ],
)
def test_splits_are_known_by_their_usual_names(name: str, expected: str | None) -> None:
    assert split_of(name) == expected


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "dev", "Test"),
        ("training_set", "validation_set", "test_set"),
        ("TRAIN", "Validation_Set", "Test images"),
    ],
)
def test_splits_of_other_names_are_used(tmp_path: Path, train: str, val: str, test: str) -> None:
    for seed, (name, count) in enumerate({train: 6, val: 2, test: 3}.items()):
        image_folder(tmp_path / "data" / name, {"a": count, "b": count}, seed)
    splits = split(tmp_path / "data", tmp_path / "run")
    assert splits.classes == ["a", "b"]
    assert sizes(splits) == {"train": 12, "val": 4, "test": 6}


def test_two_folders_for_a_split_are_rejected(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "val", "dev")):
        image_folder(tmp_path / "data" / name, {"a": 3, "b": 3}, seed)
    with pytest.raises(ValueError, match="dev and val, two for the val split: leave one, and move or rename"):
        split(tmp_path / "data", tmp_path / "run")


def test_folders_beside_splits_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed, name in enumerate(("train", "val", "unsure")):
        image_folder(tmp_path / "data" / name, {"a": 3, "b": 3}, seed)
    assert sizes(split(tmp_path / "data", tmp_path / "run")) == {"train": 6, "val": 6}
    assert [m for m in caplog.messages if m.startswith("not used, folders next to") and "unsure" in m]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train2017", "val2017"),
        ("seg_train", "seg_test"),
        ("cats_train", "cats_val"),
        ("1_train", "2_val"),
        ("trn", "tst"),
        ("train-128", "test-128"),
        ("train", "val2017"),
        ("Train", "Evaluation"),
    ],
)
def test_splits_may_be_numbered_or_carry_other_words(tmp_path: Path, train: str, val: str) -> None:
    for seed, (name, count) in enumerate({train: 9, val: 3}.items()):
        image_folder(tmp_path / "data" / name, {"a": count, "b": count}, seed)
    splits = split(tmp_path / "data", tmp_path / "run")
    assert splits.classes == ["a", "b"]
    assert "test" in sizes(splits) or sizes(splits)["val"] == 6
    with pytest.raises(
        ValueError, match=f"holds splits, {train}, {val}: pack each .*atconv data lmdb .*{train}"
    ):
        pack_folder(tmp_path / "data", tmp_path / "out.lmdb")
    assert not (tmp_path / "out.lmdb").exists()


def test_words_of_splits_in_names_of_classes_are_no_splits(tmp_path: Path) -> None:
    names = ["bullet_train", "car", "steam_train", "test_tube"]
    assert split(image_folder(tmp_path / "data", dict.fromkeys(names, 9)), tmp_path / "run").classes == names


@pytest.mark.parametrize(
    ("inner", "outer", "message"),
    [
        (("fold1", "fold2"), ("cat", "dog"), "fold1, fold2 all hold the folders cat, dog.*give one of them"),
        (("cat", "dog"), ("train", "test"), "turn that around, as .*test/cat"),
    ],
)
def test_folders_that_hold_all_the_same_folders_are_no_classes(
    inner: tuple[str, str], outer: tuple[str, str], message: str, tmp_path: Path
) -> None:
    for seed, name in enumerate(inner):
        image_folder(tmp_path / "data" / name, dict.fromkeys(outer, 6), seed)
    with pytest.raises(ValueError, match=message):
        split(tmp_path / "data", tmp_path / "run")


def test_a_run_that_has_just_begun_in_the_data_is_passed_over(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"a": 2, "b": 2, "runs/one": 0})
    for name in ("config.yaml", "log.txt"):
        (data / "runs" / "one" / name).write_text("x")
    source = FolderSource(data)
    assert source.classes == ["a", "b"]
    assert source.remarks == [f"passed over in {data}: runs"]


def test_runs_in_the_data_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = image_folder(tmp_path / "data", {"a": 9, "b": 9})
    for run in (data / "runs" / "one", data / "mine"):
        image_folder(run, {"samples": 4}, 5)
        (run / "config.yaml").write_text("epochs: 1")
        (run / "split.json").write_text("{}")
    splits = split(data, tmp_path / "run")
    assert splits.classes == ["a", "b"]
    assert sum(sizes(splits).values()) == 18
    assert any("passed over" in message and "mine, runs" in message for message in caplog.messages)


@pytest.mark.parametrize("folder", ["", "unknown"])
def test_unlabeled_test_images_are_left_out_and_named(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image_folder(tmp_path / "data" / "train", {"cat": 9, "dog": 9})
    image_folder(tmp_path / "data" / "test", {"unknown": 3}, 5)
    if not folder:
        (tmp_path / "data" / "test" / "unknown").rename(tmp_path / "flat")
        shutil.rmtree(tmp_path / "data" / "test")
        (tmp_path / "flat").rename(tmp_path / "data" / "test")
    splits = split(tmp_path / "data", tmp_path / "run")
    assert splits.classes == ["cat", "dog"]
    assert "val" in sizes(splits)
    assert sum(sizes(splits).values()) == 18
    assert any(
        "not used" in m and "test: its images are in no folders of classes" in m for m in caplog.messages
    )


def test_a_folder_with_a_table_is_not_packed(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"images": 4})
    (data / "labels.csv").write_text("image,label\n0.png,a\n1.png,b\n")
    with pytest.raises(ValueError, match="is recognized as a table of labels, and only images in folders"):
        pack_folder(data, tmp_path / "out.lmdb")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    splits = split(image_folder(tmp_path / "data", {"bus": 9, "car": 9, "train": 9}), tmp_path / "run")
    assert splits.classes == ["bus", "car", "train"]


def test_splits_without_class_folders_are_one_class(tmp_path: Path) -> None:
    image_folder(tmp_path / "faces", {"train": 9}, 0)
    image_folder(tmp_path / "faces", {"test": 4}, 1)
    splits = split(tmp_path / "faces", tmp_path / "run", min_classes=1)
    assert splits.classes == ["faces"]
    assert sizes(splits) == {"train": 7, "val": 2, "test": 4}
    with pytest.raises(ValueError, match=r"1 class: .* Its splits, train, test, have no folders of classes"):
        split(tmp_path / "faces", tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "__pycache__", "CVS"]
)
def test_folders_of_tools_are_passed_over(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = image_folder(tmp_path / "data", {"a": 9, "b": 9})
    image_folder(data, {name: 2}, 5)
    image_folder(data / "a", {name: 2}, 6)
    (data / "a" / "Thumbs.db").write_text("x")
    splits = split(data, tmp_path / "run")
    assert splits.classes == ["a", "b"]
    assert sum(sizes(splits).values()) == 18
    named = [message for message in caplog.messages if name in message]
    assert len(named) == (0 if name.startswith(".") else 1)


def test_many_folders_of_tools_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = image_folder(tmp_path / "data", {f"{name}/@eaDir": 1 for name in "abcdefgh"})
    image_folder(tmp_path, {f"data/{name}/x": 3 for name in "ab"}, 1)
    split(data, tmp_path / "run")
    assert "a/@eaDir, b/@eaDir, c/@eaDir, d/@eaDir, e/@eaDir and 3 more" in caplog.text


def test_a_run_has_as_many_classes_as_have_images(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"a": 9, "b": 0, "c": 9, "d": 1})
    (data / "d" / "0.png").write_text("no image")
    (tmp_path / "run").mkdir()
    config = tiny_config(data=str(data), in_chans=3, test_fraction=0.3, val_fraction=0.3, max_skipped=0.2)
    splits = make_splits(config, tmp_path / "run")
    assert splits.classes == ["a", "c"]
    assert set(splits["train"].labels) == {0, 1}
    assert load_splits(config, tmp_path / "run").classes == ["a", "c"]


def test_the_saved_labels_hold_where_a_class_comes_before_them_later(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"b": 9, "c": 9})
    made = split(data, tmp_path / "run")
    image_folder(data, {"a": 3}, 7)
    again = load_splits(tiny_config(data=str(data), in_chans=3), tmp_path / "run")
    for part in ("train", "val", "test"):
        assert again[part].labels == made[part].labels
        assert [again[part].name(i) for i in range(len(again[part]))] == [
            made[part].name(i) for i in range(len(made[part]))
        ]


def test_every_source_is_brought_to_the_classes_of_a_run() -> None:
    source = DigitsSource()
    before = source.labels.copy()
    source.relabel([str(9 - i) for i in range(10)])
    assert (source.labels == 9 - before).all()
    with pytest.raises(ValueError, match=r"not among the run's classes: 0, 1"):
        source.relabel([str(i) for i in range(2, 10)])
    kept = np.flatnonzero(before >= 2)
    source.relabel([str(i) for i in range(2, 10)], kept.tolist())
    assert (source.labels[kept] == before[kept] - 2).all()
    assert (source.labels[before < 2] == -1).all()


def test_all_suffixes_that_pillow_reads_are_used_and_others_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = image_folder(tmp_path / "data", {"a": 4, "b": 4})
    image = Image.fromarray(np.random.default_rng(9).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    used = [s for s in (".jfif", ".jpe", ".webp", ".avif", ".jp2", ".tga", ".mpo") if s in image_suffixes()]
    assert {".jfif", ".jpe", ".webp", ".jp2", ".mpo"} <= set(used)
    for i, suffix in enumerate(used):
        image.putpixel((0, 0), (i, 0, 0))
        image.save(data / "a" / f"x{suffix.upper()}")
    for name in ("y.nef", "z.NEF", "photo.cr2"):
        (data / "b" / name).write_bytes(b"x")
    assert sum(sizes(split(data, tmp_path / "run")).values()) == 8 + len(used)
    assert [m for m in caplog.messages if "not read" in m and "2 .nef" in m and "1 .cr2" in m]


def test_postscript_is_not_run(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(ValueError, match="EPS is not read"):
        read_image(tmp_path / "x.png")


def test_a_folder_that_cannot_be_read_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_folder(tmp_path / "data", {"a": 4, "b": 4})
    scan = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ValueError, match=r"data/b cannot be read \(Permission denied\)"):
        FolderSource(data)


def test_a_broken_link_is_listed_as_unreadable(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"a": 20, "b": 20})
    (data / "a" / "gone.png").symlink_to(tmp_path / "none.png")
    split(data, tmp_path / "run")
    assert [row["file"] for row in read_rows(tmp_path / "run" / "skipped.csv")] == ["a/gone.png"]


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"a": 3, "b": 3})
    other = image_folder(tmp_path / "other", {"c": 2})
    for link, target in (("loop", data), ("up", tmp_path), ("self", data / "self"), ("c", other / "c")):
        (data / link).symlink_to(target)
    (data / "a" / "back").symlink_to(data)
    (data / "b" / "x.png").symlink_to(data / "b" / "x.png")
    images = list_images(data).files
    assert sum(name.startswith(("a/", "b/")) for name in images) == 7  # x.png is found unreadable later
    assert [name for name in images if not name.startswith(("a/", "b/"))] == ["c/0.png", "c/1.png"]


def test_listed_images_are_sorted_by_folder_and_name(tmp_path: Path) -> None:
    image_folder(tmp_path, {"b": 11, "a/x": 2, "a.1": 1})
    assert list_images(tmp_path).files == [
        p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*.png"))
    ]


def yolo(root: Path) -> None:
    image_folder(root, {"images/train": 3})
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 0.2 0.2")


def roboflow_yolo(root: Path) -> None:
    yolo(root / "train")


def flat_yolo(root: Path) -> None:
    image_folder(root.parent, {root.name: 3})
    (root / "0.txt").write_text("0 0.5 0.5 0.2 0.2")


def flat_voc(root: Path) -> None:
    image_folder(root.parent, {root.name: 3})
    (root / "0.xml").write_text("<annotation><object/></annotation>")


KITTI = "Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57"


def kitti(root: Path) -> None:
    image_folder(root, {"training/image_2": 3})
    (root / "training" / "label_2").mkdir()
    (root / "training" / "label_2" / "0.txt").write_text(KITTI)


def flat_kitti(root: Path) -> None:
    image_folder(root.parent, {root.name: 3})
    (root / "0.txt").write_text(KITTI)


def labelme(root: Path) -> None:
    image_folder(root.parent, {root.name: 3})
    (root / "0.json").write_text(json.dumps({"version": "5.0.1", "shapes": []}))


def voc(root: Path) -> None:
    image_folder(root, {"JPEGImages": 3})
    (root / "Annotations").mkdir()
    (root / "Annotations" / "0.xml").write_text("<annotation/>")


def coco(root: Path) -> None:
    image_folder(root, {"images": 3})
    (root / "train.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))


def roboflow_coco(root: Path) -> None:
    image_folder(root, {"train": 3, "valid": 2})
    (root / "train" / "_annotations.coco.json").write_text(json.dumps({"info": {}, "images": []}))


def a_run(root: Path) -> None:
    shutil.copytree(trained_run(), root)


def masks(root: Path, images: str = "images", labels: str = "masks") -> None:
    image_folder(root, {images: 3})
    (root / labels).mkdir()
    for i in range(3):
        Image.fromarray(np.eye(8, k=i, dtype=np.uint8)).save(root / labels / f"{i}.png")


def camvid(root: Path) -> None:
    masks(root, "train", "train_labels")
    masks(root, "val", "val_labels")


def rejected(data: Path, *command: str) -> str:
    """What a command that trains says of DATA, in one line."""
    ended = atconv(*(command or ("train",)), data, f"--out={data.parent / 'run'}")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert not (data.parent / "run").exists()
    return ended.err


@pytest.mark.parametrize(
    ("make", "fits"),
    [
        (yolo, "YOLO's format .*: use `atconv detect train`"),
        (roboflow_yolo, "YOLO's format .*: use `atconv detect train`"),
        (flat_yolo, "YOLO's format .*: use `atconv detect train`"),
        (voc, "Pascal VOC's format .*: use `atconv detect train`"),
        (flat_voc, "Pascal VOC's format .*: use `atconv detect train`"),
        (kitti, "KITTI's format: convert it to .*, and use `atconv detect train`"),
        (flat_kitti, "KITTI's format: convert it to .*, and use `atconv detect train`"),
        (labelme, "LabelMe's format: convert it to .*, and use `atconv detect train`"),
        (coco, "COCO's format: use `atconv detect train`"),
        (roboflow_coco, "COCO's format: use `atconv detect train`"),
        (masks, "images with masks: use `atconv segment train`"),
        (camvid, "images with masks: use `atconv segment train`"),
    ],
)
def test_data_of_other_tasks_are_recognized(tmp_path: Path, make, fits: str) -> None:
    make(tmp_path / "data")
    assert re.search(
        f"data is recognized as .*{fits}; to use the images alone, give", rejected(tmp_path / "data")
    )


def test_classes_with_files_beside_them_are_not_taken_for_other_data(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"a": 9, "images": 9})
    (data / "annotations.csv").write_text("image,label")
    (data / "info.json").write_text('{"images": 18}')
    (data / "a" / "notes.txt").write_text("none")
    shutil.move(data / "images", data / "b")
    assert split(data, tmp_path / "run").classes == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.xlsx", b"image,label\n0.jpg,dog\n", "is recognized as a table: save labels as CSV"),
        (
            "train.json",
            b'{"images": [], "annotations": []}',
            "COCO's format: give the folder that holds them, and use `atconv detect train`",
        ),
        ("data.npz", b"PK\x05\x06" + bytes(18), "is recognized as a file of arrays: save its images as PNG"),
        ("data.zip", b"PK\x05\x06" + bytes(18), "is recognized as an archive: unpack it"),
    ],
)
def test_files_of_other_kinds_are_recognized(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in rejected(tmp_path / name)


UNANNOTATED = "images without boxes or masks: for "
TABLE = "a table of labels: for "


@pytest.mark.parametrize("command", ["detect", "segment"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: image_folder(root, {"a": 3, "b": 3}), UNANNOTATED),
        (lambda root: image_folder(root, {"train/a": 3}), UNANNOTATED),
        (kitti, "KITTI's format: convert it to COCO's, YOLO's or Pascal VOC's format"),
        (lambda root: pack_folder(image_folder(root.parent / "x", {"a": 2}), root), "LMDB files: for "),
        (lambda root: root.write_text("image,label\n"), TABLE),
        (lambda root: Image.new("L", (4, 4)).save(root, "PNG"), "one image: give a folder of images"),
        (a_run, "the folder of a run: give a folder of images"),
    ],
    ids=["classes", "splits", "kitti", "lmdb", "table", "image", "run"],
)
def test_detection_and_segmentation_recognize_what_is_not_theirs(
    tmp_path: Path, make, message: str, command: str
) -> None:
    data = tmp_path / ("data.csv" if message == TABLE else "data")
    make(data)
    err = rejected(data, command, "train")
    assert f"{data} is recognized as " in err
    assert message in err
    if "for " in message:
        assert re.search(r"give a folder with images/.*, or use `atconv train`\n", err)
    if command == "segment" and "KITTI" in message:
        assert "and use `atconv detect train`" in err


@pytest.mark.parametrize(
    "make", [yolo, roboflow_yolo, flat_yolo, voc, flat_voc, kitti, coco, masks, train_tiny]
)
def test_data_of_other_tasks_are_not_packed(tmp_path: Path, make) -> None:
    make(tmp_path / "data")
    ended = atconv("data", "lmdb", tmp_path / "data", tmp_path / "out.lmdb")
    assert ended.code == 2
    assert re.search(r"data is recognized as .*\n", ended.err)
    assert not (tmp_path / "out.lmdb").exists()


@pytest.mark.parametrize("make", [yolo, voc, coco, masks, kitti])
def test_an_evaluation_says_what_the_run_and_the_data_are(tmp_path: Path, make) -> None:
    make(tmp_path / "data")
    ended = atconv("evaluate", trained_run(), tmp_path / "data")
    assert ended.code == 2
    assert re.search(
        "is recognized as .*; the run is a classification run, and `atconv (detect|segment) evaluate`",
        ended.err,
    )
    assert "train`" not in ended.err
    ended = atconv("evaluate", tmp_path / "data")
    assert re.search(r"is not a run: it is recognized as ", ended.err)


@pytest.mark.parametrize("make", [yolo, voc, coco])
def test_a_wrapper_names_the_folder_inside(tmp_path: Path, make) -> None:
    make(tmp_path / "data" / "archive")
    assert "data/archive has: give that folder" in rejected(tmp_path / "data", "detect", "train")


def test_masks_and_boxes_name_each_others_command(tmp_path: Path) -> None:
    masks(tmp_path / "masks")
    camvid(tmp_path / "camvid")
    coco(tmp_path / "coco")
    message = "images with masks: for boxes, give a folder with images/.*, or use `atconv segment train`\n"
    assert re.search(message, rejected(tmp_path / "masks", "detect", "train"))
    assert re.search(message, rejected(tmp_path / "camvid", "detect", "train"))
    message = "in COCO's format: for masks, give a folder with images/.*, or use `atconv detect train`\n"
    assert re.search(message, rejected(tmp_path / "coco", "segment", "train"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad.png", "one image: give a folder"),
        ("model.safetensors", "a file of weights: give a folder of images"),
        ("notes.md", "is in no format that is read here: give an image folder, a table of labels, an LMDB"),
        ("bad.lmdb", "bad.lmdb is not an LMDB file"),
    ],
)
def test_files_that_are_no_data_are_called_what_they_are(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"nothing that can be read")
    assert message in rejected(tmp_path / name)


def test_one_image_is_no_data(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="is recognized as one image: give a folder"):
        split(tmp_path / "x.png", tmp_path / "run")


def test_a_wrapped_folder_names_the_one_inside(tmp_path: Path) -> None:
    image_folder(tmp_path / "data" / "archive" / "inner", {"a": 4, "b": 4})
    with pytest.raises(ValueError, match=r"has 1 class.*data/archive/inner: give that"):
        split(tmp_path / "data", tmp_path / "run")


@pytest.mark.parametrize(
    ("names", "expected"),
    [("train val test", "test"), ("train val", "val"), ("all", "all"), ("train", "train")],
)
def test_auto_takes_the_split_to_evaluate_on(names: str, expected: str) -> None:
    assert choose_split(names.split(), "auto", "DATA") == expected


@pytest.mark.plots
def test_names_that_are_not_utf8_come_through_a_run(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"ant": 30, "bee": 30})
    (data / "bee").rename(os.fsdecode(os.fsencode(data) + b"/b\xe9e"))
    (data / "ant" / "1.png").rename(os.fsdecode(os.fsencode(data) + b"/ant/\xff1.png"))
    run = tmp_path / "run"
    options = tiny_options(in_chans=3, test_fraction=0.3, batch_size=8, base_batch_size=8)
    ended = atconv("train", data, *options, f"--out={run}")
    assert ended.code == 0, ended.err
    rows = read_rows(run / "predictions.csv")
    assert {row["label"] for row in rows} == {"ant", "b\\udce9e"}
    for table in run.glob("*.csv"):
        table.read_text(encoding="utf-8")
    ended = atconv("evaluate", run, data, "--split=all")
    assert ended.code == 0, ended.err
    rows = read_rows(run / "evaluation" / "data-all" / "predictions.csv")
    assert "ant/\\udcff1.png" in {row["image"] for row in rows}
