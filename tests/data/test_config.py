"""Options about the data that have no effect on the DATA that is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atconv.data.config import DataConfig
from atconv.data.formats import open_sources
from atconv.data.sources.pack import pack_folder
from atconv.data.splits import make_splits
from support.tiny import atconv, image_folder, tiny_options, trained_run

ONLY_NAMED = [
    ("data_root", "data"),
    ("train_split", "training"),
    ("val_split", "val"),
    ("test_split", "test"),
]


@pytest.mark.parametrize("option", ONLY_NAMED, ids=lambda option: option[0])
@pytest.mark.parametrize("kind", ["folder", "splits", "lmdb", "digits"])
def test_options_of_named_datasets_are_rejected_elsewhere(
    tmp_path: Path, kind: str, option: tuple[str, Any]
) -> None:
    folder = image_folder(tmp_path / "images", {"ant": 3, "bee": 3})
    data = str(folder)
    if kind == "splits":
        image_folder(tmp_path / "parts" / "train", {"ant": 3, "bee": 3})
        data = str(tmp_path / "parts")
    elif kind == "lmdb":
        data = str(pack_folder(folder, tmp_path / "images.lmdb"))
    elif kind == "digits":
        data = "digits"
    name = option[0].replace("_", "-")
    with pytest.raises(ValueError, match=f"--{name} {option[1]} has no effect: DATA .*{Path(data).name}"):
        open_sources(DataConfig(data=data, **dict([option])))


@pytest.mark.parametrize(
    ("options", "splits"),
    [
        ({"val_fraction": 0.2}, ["train", "val"]),
        ({"test_fraction": 0.2}, ["train", "val"]),
        ({"test_fraction": 0.2}, ["train", "test"]),
        ({"val_fraction": 0.2}, ["train", "val", "test"]),
    ],
)
def test_a_fraction_for_a_split_that_is_there_is_said_to_have_no_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, float], splits: list[str]
) -> None:
    for i, split in enumerate(splits):
        image_folder(tmp_path / "data" / split, {"ant": 4, "bee": 4}, seed=i)
    [name] = options
    with caplog.at_level("INFO"):
        make_splits(DataConfig(data=str(tmp_path / "data"), **options), tmp_path)
    assert f"--{name.replace('_', '-')} 0.2 has no effect: DATA {tmp_path / 'data'} comes with" in caplog.text


def test_a_fraction_for_a_split_that_is_missing_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "test"):
        image_folder(tmp_path / "data" / split, {"ant": 10, "bee": 10}, seed=len(split))
    with caplog.at_level("INFO"):
        splits = make_splits(DataConfig(data=str(tmp_path / "data"), val_fraction=0.3), tmp_path)
    assert "no effect" not in caplog.text
    assert len(splits["val"]) == 6


@pytest.mark.parametrize("option", ["--label-separator=;", "--data-root=.", "--val-split=dev"])
def test_a_command_rejects_them_in_one_line(tmp_path: Path, option: str) -> None:
    ended = atconv("train", "digits", *tiny_options(), option, f"--out={tmp_path / 'run'}")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"{option.replace('=', ' ')} has no effect" in ended.err
    assert not (tmp_path / "run").exists()


def test_evaluation_rejects_a_root_for_a_folder(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"0": 2, "1": 2})
    ended = atconv("evaluate", trained_run(), data, f"--data-root={tmp_path}")
    assert "--data-root" in ended.err
    assert "has no effect" in ended.err
