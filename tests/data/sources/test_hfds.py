"""Data by a Hugging Face dataset's name: here a local folder, so that nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.tiny import atconv, tiny_options

pytest.importorskip("datasets")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Splits train and validation of dark cats and bright dogs, and no cache outside the test."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 8)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(128 * label, 128 * label + 100, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


def options(root: Path, run: Path) -> list[str]:
    values = tiny_options(
        in_chans=3, val_split="validation", batch_size=8, base_batch_size=8, data_root=str(run.parent)
    )
    return [f"hfds/{root}", *values, f"--out={run}"]


def test_a_run_trains_on_a_hugging_face_dataset(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = atconv("train", *options(root, run))
    assert ended.code == 0, ended.err
    split = json.loads((run / "split.json").read_text())
    assert split["classes"] == ["cat", "dog"]
    assert split["message"] == "2 classes, images: 48 train, 16 val"
    assert (run / "predictions.csv").read_text().count("\n") == 1 + 16
    ended = atconv("predict", str(run), str(root / "validation"))
    assert ended.code == 0, ended.err


def test_an_unreadable_image_is_left_out(root: Path, tmp_path: Path) -> None:
    bad = root / "train" / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    run = tmp_path / "run"
    ended = atconv("train", *options(root, run), "--max-skipped=0.1")
    assert ended.code == 0, ended.err
    assert len((run / "skipped.csv").read_text().splitlines()) == 2
