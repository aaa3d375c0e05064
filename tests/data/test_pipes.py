"""What is no file, such as a pipe, is left out or named: reading it would never end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from atconv.data.annotated_splits import drop_copies
from atconv.data.config import DataConfig
from atconv.data.formats import open_boxes, open_masks
from atconv.data.splits import make_splits
from atconv.engine.reading import read_json, read_yaml
from support.tiny import image_folder, read_rows
from support.tiny_dense import annotated_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")


def test_a_pipe_in_a_class_folder_is_left_out(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"ant": 10, "bee": 10})
    os.mkfifo(data / "ant" / "pipe.png")
    os.mkfifo(data / "ant" / "pipe.txt")
    (data / "bee" / "device.png").symlink_to("/dev/zero")
    (tmp_path / "run").mkdir()
    splits = make_splits(DataConfig(data=str(data), max_skipped=0.2), tmp_path / "run")
    assert sum(map(len, splits.by_name.values())) == 20
    rows = {row["file"]: row["reason"] for row in read_rows(tmp_path / "run" / "skipped.csv")}
    assert set(rows) == {"ant/pipe.png", "bee/device.png"}
    assert all("is a pipe, socket or device" in reason for reason in rows.values())


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_pipe_among_annotated_images_or_masks_is_left_out(kind: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", 4, 1)
    (data / kind / "train" / "1.png").unlink()
    os.mkfifo(data / kind / "train" / "1.png")
    opened = (
        open_masks(data, skip_unreadable=True)
        if kind == "masks"
        else open_boxes(data, False, skip_unreadable=True)
    )
    drop_copies(dict(opened), 0.5, tmp_path / "skipped.csv")
    [row] = read_rows(tmp_path / "skipped.csv")
    assert row["file"] == "1.png"
    assert "is a pipe, socket or device" in row["reason"]


def test_a_pipe_among_label_files(tmp_path: Path) -> None:
    source = annotated_folder(tmp_path / "source", 3, 1)
    data = tmp_path / "yolo"
    data.mkdir()
    for i in range(3):
        shutil.copy(source / "images" / "train" / f"{i}.png", data)
        (data / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (data / "1.txt").unlink()
    os.mkfifo(data / "1.txt")
    assert len(open_boxes(data, False)["train"]) == 3


def test_files_of_options_and_of_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (read_yaml, lambda path: read_json(path, {})):
        with pytest.raises(ValueError, match="is a pipe, socket or device"):
            read(tmp_path / "pipe")
