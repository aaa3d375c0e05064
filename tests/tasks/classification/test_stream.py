"""Data that only comes in order: webdataset files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.tiny import KillAt, atconv, read_rows, tiny_options

pytest.importorskip("webdataset")

SPLITS = {"train": 48, "val": 16}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tar file for each split, two classes, and the _info.json that timm reads."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "wds"
    folder.mkdir()
    splits = {}
    for split, count in SPLITS.items():
        name = f"{split}-0000.tar"
        with tarfile.open(folder / name, "w") as archive:
            for i in range(count):
                image = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(image, "PNG")
                for suffix, content in (("png", image.getvalue()), ("cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        splits[split] = {"name": split, "filenames": [name], "shard_lengths": [count], "num_samples": count}
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    return folder


def options(root: Path, **changes: Any) -> list[str]:
    values = {
        "data_root": str(root),
        "val_split": "val",
        "num_classes": 2,
        "in_chans": 3,
        "batch_size": 8,
        "base_batch_size": 8,
    }
    return tiny_options(**(values | changes))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_trains_on_a_stream(root: Path, tmp_path: Path, workers: int) -> None:
    run = tmp_path / "run"
    ended = atconv("train", "wds/images", *options(root, workers=workers), f"--out={run}")
    assert ended.code == 0, ended.err
    [row] = read_rows(run / "metrics.csv")
    assert int(row["step"]) == 6
    assert (run / "model.safetensors").is_file()
    assert json.loads((run / "metrics.json").read_text())["split"] == "val"
    assert (run / "confusion.png").is_file()
    assert (run / "mistakes.png").is_file()


@pytest.mark.slow
def test_a_resumed_stream_restarts_its_epoch_and_says_so(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = options(root, epochs=2)
    kill = KillAt("torch.optim.AdamW.step", nth=6 + 4)
    killed = atconv("train", "wds/images", *arguments, f"--out={run}", kill_at=kill)
    assert killed.code == -9
    ended = atconv("train", "--resume", run, plots=False)
    assert ended.code == 0, ended.err
    assert "a stream cannot be entered in the middle: epoch 2 starts from its beginning" in ended.out
    assert [int(row["step"]) for row in read_rows(run / "metrics.csv")] == [6, 12]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_split": "test"}, "takes neither test_split"),
        ({"checkpoint_steps": 2}, "nor checkpoint_steps"),
        ({"val_split": "null"}, "--val-split"),
        ({"num_classes": "null"}, "--num-classes"),
    ],
    ids=["test", "checkpoints", "no validation", "no classes"],
)
def test_what_a_stream_needs_is_said(
    root: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    ended = atconv("train", "wds/images", *options(root, **changes), f"--out={tmp_path / 'run'}")
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert message in ended.err
