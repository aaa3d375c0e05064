"""WebDataset shards, read by position."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from atconv.data.checks.check import check_data
from atconv.data.formats import open_sources
from atconv.data.loaders import EpochBatches
from atconv.data.sources.base import ImageSource
from atconv.data.splits import make_splits, readable_split
from atconv.data.unreadable import TooManyUnreadable
from atconv.engine.batch_plan import plan_batches
from atconv.engine.config import TrainConfig
from atconv.tasks import load
from atconv.tasks.classification.config import ClassificationConfig
from support.tiny import KillAt, atconv, read_rows, tiny_options
from support.torchrun import in_processes
from support.wds import Sample, png, samples, write_shard


def open_data(path: Path, **options: Any) -> dict[str, ImageSource]:
    return open_sources(ClassificationConfig(data=str(path), **options))


def test_samples_are_those_that_webdataset_reads(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    with wds.ShardWriter(str(tmp_path / "s-%04d.tar"), maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"in/{i}", "JPG": png(i), "cls": 9 - i, "json": {"label": "other"}})
    urls = sorted(map(str, tmp_path.glob("*.tar")))
    expected = [
        (each["__key__"], each["jpg"], int(each["cls"]))
        for each in wds.WebDataset(urls, shardshuffle=False, empty_check=False)
    ]
    source = open_data(tmp_path)["train"]
    found = [
        (source.name(i).partition("/")[2].removesuffix(".jpg"), source.encoded(i), int(source.labels[i]))
        for i in range(len(source))
    ]
    assert found == expected
    assert source.classes == [str(i) for i in range(10)]
    assert source.shards is not None
    assert source.shards.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert np.array_equal(source.read(7, "RGB"), Image.open(io.BytesIO(png(7))))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-0000.tar", "train-0001.tar", "val-0000.tar", "test-0000.tar"], [2, 1, 1]),
        (["imagenet1k-train-0.tar", "imagenet1k-train-1.tar", "imagenet1k-validation-0.tar"], [2, 1, 0]),
        (["train.tar", "test.tar"], [1, 0, 1]),
        (["train/0.tar", "train/1.tar", "valid/0.tar"], [2, 1, 0]),
        (["0000.tar", "0001.tar", "0002.tar"], [3, 0, 0]),
    ],
)
def test_splits_go_by_the_names_of_shards_or_folders(
    names: list[str], splits: list[int], tmp_path: Path
) -> None:
    for name in names:
        write_shard(tmp_path / name, samples(2))
    sources = open_data(tmp_path)
    assert [len(sources.get(name, [])) // 2 for name in ("train", "val", "test")] == splits


def test_splits_go_by_the_list_that_timm_writes(tmp_path: Path) -> None:
    files = [write_shard(tmp_path / f"{i}.tar", samples(2, i)).name for i in range(4)]
    splits = {
        "train": {"filenames": files[2:]}, "validation": {"filenames": files[:1]},
    }  # fmt: skip
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    sources = open_data(tmp_path)
    assert {split: source.name(0) for split, source in sources.items()} == {
        "train": "2.tar/0000.png", "val": "0.tar/0000.png",
    }  # fmt: skip
    (tmp_path / "_info.json").write_text('{"splits": {"train": {"filenames": ["../other.tar"]}}}')
    with pytest.raises(ValueError, match=r"_info\.json lists shards that are not in .*: \.\./other\.tar"):
        open_data(tmp_path)


def test_one_shard_is_data_too(tmp_path: Path) -> None:
    source = open_data(write_shard(tmp_path / "all.tar", samples(3)))["train"]
    assert [source.name(i) for i in range(3)] == ["all.tar/0000.png", "all.tar/0001.png", "all.tar/0002.png"]


@pytest.mark.parametrize(
    ("labels", "options", "classes", "expected"),
    [
        ([b'{"label": "cat"}', b'{"label": "ant"}'], {}, ["ant", "cat"], [1, 0]),
        ([b'{"Class": 10}', b'{"Class": 9}'], {}, ["9", "10"], [1, 0]),
        ([b'{"k": "x", "label": 1}', b'{"k": "y", "label": 1}'], {"label_column": "k"}, ["x", "y"], [0, 1]),
        ([b'{"tags": ["a", "b"]}', b'{"tags": []}'], {}, ["a", "b"], [[1, 1], [0, 0]]),
    ],
)
def test_labels_come_from_fields_of_json(
    labels: list[bytes], options: dict[str, str], classes: list[str], expected: Any, tmp_path: Path
) -> None:
    content = [{"png": png(i), "json": label} for i, label in enumerate(labels)]
    source = open_data(write_shard(tmp_path / "0.tar", content), **options)["train"]
    assert (source.classes, source.labels.tolist()) == (classes, expected)


def test_what_is_no_image_is_counted_and_an_unlabeled_split_is_not_used(tmp_path: Path) -> None:
    extra: list[Sample] = [{"seg.png": png(0), "jpg": png(1), "cls": b"1"}, {"txt": b"notes"}]
    write_shard(tmp_path / "train-0.tar", [*samples(2), *extra])
    write_shard(tmp_path / "test-0.tar", [{"jpg": png(2), "txt": b"?"}])
    write_shard(tmp_path / "more-0.tar", samples(1))
    [(split, source)] = open_data(tmp_path).items()
    assert (split, len(source), source.name(2)) == ("train", 3, "train-0.tar/0002.jpg")
    assert source.remarks == [
        f"not used, shards of no split in {tmp_path}: more-0.tar",
        f"not used: no sample of the test split of {tmp_path} has a label: its first holds jpg, txt",
        f"not used, samples without an image in {tmp_path}: 1",
    ]


def cut(by: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:by]


def one(**changes: bytes) -> list[Sample]:
    return [*samples(1), {"png": png(1), "cls": b"0"} | changes]


BAD: dict[str, tuple[list[Sample], Callable[[bytes], bytes], str]] = {
    "cut in a member": (samples(9), cut(9000), "damaged"),
    "cut between members": (samples(2), cut(1024 + 512 + 512), "damaged after 2048 bytes: it is cut"),
    "joined": (samples(2), lambda content: content + content, "several in one"),
    "overwritten": (samples(9), lambda c: c[:4096] + b"?" * 512 + c[4608:], "damaged"),
    "fractions": (one(cls=b"0.5"), cut(1 << 20), "0001.png: the label is 0.5"),
    "two images": (one(jpg=b""), cut(1 << 20), "0001 holds several images: png, jpg"),
    "broken json": ([{"png": b"", "json": b"{"}], cut(1 << 20), r"0000\.png: its json cannot be read"),
    "deep json": ([{"png": b"", "json": b"[" * 99999}], cut(1 << 20), r"0000\.png: its json cannot be read"),
    "mapping": ([{"png": b"", "json": b'{"label": {}}'}], cut(1 << 20), "0000: label in its json is no"),
    "captions": (
        [{"png": b"", "txt": b"a cat", "json": b'{"w": 1}'}],
        cut(1 << 20),
        r"has a label: its first holds json, png, txt, json: w\. Name a member, .* --label-column",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "damage", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_a_shard_is_said_with_its_name(
    content: list[Sample], damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    path = write_shard(tmp_path / "train-0.tar", content)
    path.write_bytes(damage(path.read_bytes()))
    write_shard(tmp_path / "val-0.tar", samples(2))
    with pytest.raises(ValueError, match=message) as raised:
        open_data(tmp_path)
    assert "\n" not in str(raised.value)
    assert ("train-0.tar" in str(raised.value)) == ("first holds" not in message)


def test_classes_txt_names_numbers(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [{"png": png(0), "cls": b"2"}, {"png": png(1), "cls": b"0"}])
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    source = open_data(tmp_path)["train"]
    assert (source.classes, source.labels.tolist()) == (["ant", "cat"], [1, 0])
    for names in ("ant\nbee\n", "ant\nbee\nant\n"):
        (tmp_path / "classes.txt").write_text(names)
        with pytest.raises(ValueError, match=r"classes\.txt must name the classes 0 … 2, one a line"):
            open_data(tmp_path)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"cls": b" "}, "it has no label"),
        ({}, "it has no label"),
        ({"cls": b"\xff"}, "its label is not in UTF-8"),
        ({"json": b"{"}, "its json cannot be read"),
        ({"json": b"\xff"}, "its label is not in UTF-8"),
    ],
)
def test_samples_without_a_label_are_left_out_as_unreadable_ones_are(
    bad: Sample, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "shards"
    write_shard(data / "0.tar", [{"png": png(99)} | bad, *samples(19)])
    config = ClassificationConfig(data=str(data))
    splits = make_splits(config, tmp_path)
    assert sum(map(len, splits.by_name.values())) == 19
    [row] = read_rows(tmp_path / "skipped.csv")
    assert (row["split"], row["file"]) == ("train", "0.tar/0000.png")
    assert row["reason"].startswith(reason)
    report = check_data("", open_sources(config), 1.0)
    [found] = [finding for finding in report.findings if finding.kind == "unreadable"]
    assert (found.file, found.detail) == (row["file"], row["reason"])
    assert report.table().rows[0][:3] == ["train", "20", "1"]
    assert len(readable_split(open_sources(config)["train"])) == 19
    assert f"left out 0.tar/0000.png: {reason}" in caplog.text
    with pytest.raises(TooManyUnreadable, match=rf"1 of 20 files .* the first is 0\.tar/0000\.png: {reason}"):
        make_splits(replace(config, max_skipped=0.0), tmp_path)


def test_archives_are_to_be_unpacked(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "wds" / "0.tar", samples(2))
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "0.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(ValueError, match="a folder of archives: unpack them"):
        open_data(tmp_path / "packed")
    write_shard(tmp_path / "images.tar", [{"png": png(0)}])
    with pytest.raises(ValueError, match="an archive: unpack it"):
        open_data(tmp_path / "images.tar")


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_epoch_reads_shard_after_shard_and_shares_each_image_out_once(
    processes: int, weighted: bool
) -> None:
    shards = np.repeat(np.arange(60, dtype=np.int32), 40)
    plan = plan_batches(TrainConfig(batch_size=4, base_batch_size=4 * processes), len(shards), processes)
    weights = np.ones(len(shards)) if weighted else None
    ranks = [
        [[key.position for key in batch] for batch in EpochBatches(
            len(shards), plan, 0, 5, rank, weights=weights, shards=shards
        )]
        for rank in range(processes)
    ]  # fmt: skip
    order = [position for step in zip(*ranks, strict=True) for batch in step for position in batch]
    assert sorted(order) == list(range(len(shards)))
    at_once = [len(np.unique(shards[order[start : start + 80]])) for start in range(0, len(shards), 40)]
    assert 12 <= min(at_once[:-1]) <= max(at_once) <= 19, "of 60, and 58 at random"
    first, later = set(shards[order[:80]].tolist()), set(shards[order[1200:1280]].tolist())
    assert not first & later
    assert max(first) - min(first) > 30, "shards have an order of their own"


OPTIONS: dict[str, Any] = {"in_chans": 3, "batch_size": 4, "base_batch_size": 12, "hflip": 0.5}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few shards, uneven ones: 36 images to train on."""
    root = tmp_path_factory.mktemp("shards")
    for i, (name, count) in enumerate((("train-0", 29), ("train-1", 7), ("val-0", 4), ("test-0", 5))):
        write_shard(root / f"{name}.tar", samples(count, 100 * i))
    return root


@pytest.mark.parametrize("processes", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_share_few_shards_and_the_test_split_is_evaluated(
    processes: int, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = in_processes("train", shards, *tiny_options(**OPTIONS), f"--out={run}", count=processes)
    assert ended.code == 0, ended.err
    assert "2 classes, images: 36 train, 4 val, 5 test" in ended.out
    assert [int(row["step"]) for row in read_rows(run / "metrics.csv")] == [3]
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["split"], metrics["images"]) == ("test", 5)
    saved = json.loads((run / "split.json").read_text())
    assert {name.partition("/")[0] for name in saved["train"]} == {"train-0.tar", "train-1.tar"}
    assert load(run).evaluate(str(shards / "test-0.tar"), split="all").images == 5


def test_a_killed_run_resumes_to_the_sample(shards: Path, tmp_path: Path) -> None:
    options = tiny_options(**(OPTIONS | {"epochs": 2, "checkpoint_steps": 2, "base_batch_size": 4}))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert atconv("train", shards, *options, f"--out={whole}").code == 0
    kill = KillAt("torch.optim.AdamW.step", nth=9 + 4)
    assert atconv("train", shards, *options, f"--out={killed}", kill_at=kill).code == -9
    ended = atconv("train", "--resume", killed)
    assert ended.code == 0, ended.err
    expected, found = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    timeless = [
        [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(run / "metrics.csv")]
        for run in (whole, killed)
    ]
    assert timeless[0] == timeless[1]
