from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atconv.data.splits import make_splits
from studies.datasets.fashion_mnist import unpack_fashion_mnist
from support.tiny import atconv, tiny_config, tiny_options

SPLITS = {"train": 60, "t10k": 20}


def idx(values: np.ndarray) -> bytes:
    """The idx format: 0, 0, 8 (unsigned bytes), number of dimensions, each of them, values."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "debian"
    folder.mkdir()
    for split, count in SPLITS.items():
        images = np.minimum(rng.integers(0, 999, (count, 28, 28)), 255).astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m studies.datasets.fashion_mnist` as one does in a checkout."""
    line = [sys.executable, "-m", "studies.datasets.fashion_mnist", *map(str, arguments)]
    checkout = Path(__file__).parents[2]
    return subprocess.run(line, cwd=checkout, capture_output=True, text=True, check=False)


def test_the_files_are_unpacked_as_torchvision_reads_them(source: Path, tmp_path: Path) -> None:
    from torchvision.datasets import FashionMNIST

    ended = command(tmp_path / "root", f"--source={source}")
    assert ended.returncode == 0, ended.stderr
    assert str(tmp_path / "root" / "FashionMNIST" / "raw") in ended.stdout
    for train, count in ((True, 60), (False, 20)):
        assert len(FashionMNIST(tmp_path / "root", train=train)) == count
    assert len(list((tmp_path / "root" / "FashionMNIST" / "raw").iterdir())) == 4


def test_timm_s_validation_split_is_the_test_split(source: Path, tmp_path: Path) -> None:
    unpack_fashion_mnist(tmp_path / "root", source)
    (tmp_path / "run").mkdir()
    config = tiny_config(data="torch/fashion_mnist", data_root=str(tmp_path / "root"), val_fraction=0.2)
    splits = make_splits(config, tmp_path / "run")
    assert [len(split) for split in map(splits.__getitem__, ("train", "val", "test"))] == [50, 10, 20]
    assert splits.classes[0] == "T-shirt/top"
    raw = gzip.decompress((source / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    first = np.frombuffer(raw, np.uint8)[: 28 * 28].reshape(28, 28)
    np.testing.assert_array_equal(np.asarray(splits["test"].read(0, "L")), first)
    assert splits["test"].labels == [i % 10 for i in range(20)]


def test_a_run_trains_on_them(source: Path, tmp_path: Path) -> None:
    unpack_fashion_mnist(tmp_path / "root", source)
    options = tiny_options(
        data_root=str(tmp_path / "root"), val_fraction=0.2, batch_size=16, base_batch_size=16, workers=1
    )
    ended = atconv("train", "torch/fashion_mnist", *options, f"--out={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_files_that_are_there_are_kept(source: Path, tmp_path: Path) -> None:
    raw = unpack_fashion_mnist(tmp_path / "root", source)
    (raw / "train-labels-idx1-ubyte").write_bytes(b"mine")
    assert unpack_fashion_mnist(tmp_path / "root", source) == raw
    assert (raw / "train-labels-idx1-ubyte").read_bytes() == b"mine"


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        unpack_fashion_mnist(tmp_path / "root", tmp_path)
    ended = command(tmp_path / "root", f"--source={tmp_path}")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "dataset-fashion-mnist" in ended.stderr
    assert not (tmp_path / "root").exists()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def change(content: bytes) -> bytes:
    return content[:40] + bytes(255 - b for b in content[40:80]) + content[80:]


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda content: b"no gzip",
        lambda content: b"",
        lambda content: content[:-8] + bytes(8),
        change,
    ],
    ids=["truncated", "text", "empty", "checksum", "changed"],
)
def test_a_damaged_file_is_named_and_not_unpacked(source: Path, tmp_path: Path, damage) -> None:
    path = source / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        unpack_fashion_mnist(tmp_path / "root", source)
    assert not list(tmp_path.rglob("*t10k-images-idx3-ubyte"))


def test_a_missing_dataset_is_reported_in_one_line(tmp_path: Path) -> None:
    options = tiny_options(data_root=str(tmp_path))
    ended = atconv("train", "torch/fashion_mnist", *options, f"--out={tmp_path / 'run'}")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "python -m studies.datasets.fashion_mnist" in ended.err
    assert not (tmp_path / "run").exists()
