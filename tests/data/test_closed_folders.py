"""Folders and files that may not be read are named, whatever they hold."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.box_formats import voc_folder, yolo_folder
from support.tiny import atconv, image_folder
from support.tiny_dense import annotated_folder

_PERMISSIONS = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root reads everything


@pytest.fixture
def close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Takes all permissions from a file or folder, and root's power over it."""
    monkeypatch.chdir(tmp_path)
    library, before, closed = ctypes.CDLL(None), (ctypes.c_uint32 * 6)(), []
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # of this process, in version 3
    assert library.capget(header, before) == 0
    effective, *others = before

    def take(path: Path) -> None:
        path.chmod(0)
        closed.append(path)
        assert library.capset(header, (ctypes.c_uint32 * 6)(effective & ~_PERMISSIONS, *others)) == 0

    yield take
    library.capset(header, before)
    for path in closed:
        path.chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="root's power is taken as Linux has it")
@pytest.mark.parametrize(
    ("task", "make", "closed"),
    [
        ("", lambda data: image_folder(data, {"a": 3, "b": 3}), "b"),
        ("", lambda data: image_folder(data, {"train/a": 3, "train/b": 3, "val/a": 3}), "val"),
        ("", lambda data: image_folder(data, {"a": 3, "b/inner": 3}), "b/inner"),
        ("detect", annotated_folder, "train.json"),
        ("detect", annotated_folder, "images/val"),
        ("detect", yolo_folder, "labels/val"),
        ("detect", lambda data: voc_folder(data, "VOC"), "Annotations"),
        ("segment", annotated_folder, "masks/val"),
    ],
)
def test_what_may_not_be_read_is_named(
    task: str, make: Callable[[Path], Path], closed: str, close: Callable[[Path], None]
) -> None:
    data = make(Path("data"))
    close(data / closed)
    ended = atconv(*f"{task} train data --out=run".split())
    assert ended.code == 2
    assert f"train: data/{closed} cannot be read (Permission denied): allow it" in ended.err
