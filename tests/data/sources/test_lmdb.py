from __future__ import annotations

import os
import pickle
import re
import sys
from pathlib import Path
from unittest import mock

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atconv.data.config import DataConfig
from atconv.data.formats import open_sources
from atconv.data.sources import lmdb_file
from atconv.data.sources.folders import FolderSource
from atconv.data.sources.lmdb import LmdbSource
from atconv.data.sources.lmdb_file import LmdbReader, build_lmdb
from atconv.data.sources.pack import pack_folder
from atconv.data.splits import make_splits
from support.tiny import atconv, image_folder, start_process, tiny_config, tiny_options

RECORDS = [(b"first", 0), (b"second" * 1000, 1), (b"", 1)]


def write(path: Path, values: dict[bytes, bytes]) -> Path:
    with (
        lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key, value)
    return path


class Evil:
    """Runs code where it is unpickled the usual way."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return Path.touch, (self.mark,)


PLAIN = {
    b"__len__": pickle.dumps(1),
    b"__classes__": pickle.dumps(["a"]),
    b"00000000": pickle.dumps((b"x", 0)),
}


def test_records_come_back(tmp_path: Path) -> None:
    build_lmdb(tmp_path / "a.lmdb", RECORDS, len(RECORDS), ["a", "b"])
    reader = LmdbReader(tmp_path / "a.lmdb")
    assert reader.classes == ["a", "b"]
    assert [reader[i] for i in range(len(reader))] == RECORDS


def test_the_format_is_that_of_the_release(tmp_path: Path) -> None:
    build_lmdb(tmp_path / "a.lmdb", RECORDS, len(RECORDS), ["a", "b"])
    environment = lmdb.open(str(tmp_path / "a.lmdb"), subdir=False, readonly=True, lock=False)
    with environment, environment.begin() as transaction:
        content = {bytes(k): bytes(v) for k, v in transaction.cursor()}
    assert np.frombuffer(content.pop(b"__labels__"), "<i8").tolist() == [0, 1, 1]
    records = {key: pickle.loads(value) for key, value in content.items()}
    assert records == {b"__len__": 3, b"__classes__": ["a", "b"]} | {
        f"{i:08d}".encode(): record for i, record in enumerate(RECORDS)
    }


def _read_second(reader: LmdbReader) -> None:
    assert reader[1] == RECORDS[1]


def test_a_reader_goes_to_other_processes(tmp_path: Path) -> None:
    build_lmdb(tmp_path / "a.lmdb", RECORDS, len(RECORDS), ["a", "b"])
    reader = LmdbReader(tmp_path / "a.lmdb")
    process = start_process(_read_second, reader)
    process.join(60)
    assert process.exitcode == 0
    assert reader[1] == RECORDS[1]


def test_a_file_may_be_opened_twice(tmp_path: Path) -> None:
    build_lmdb(tmp_path / "a.lmdb", RECORDS, len(RECORDS), ["a", "b"])
    first, second = LmdbReader(tmp_path / "a.lmdb"), LmdbReader(tmp_path / "a.lmdb")
    assert first[1] == second[1]


@pytest.mark.parametrize("key", sorted(PLAIN))
def test_a_record_that_names_a_class_is_rejected_and_not_run(tmp_path: Path, key: bytes) -> None:
    mark = tmp_path / "ran"
    evil = pickle.dumps(Evil(mark) if key != b"00000000" else (b"x", Evil(mark)))
    pickle.loads(evil)
    assert mark.exists(), "the record would do harm"
    mark.unlink()
    path = write(tmp_path / "a.lmdb", PLAIN | {key: evil})
    with pytest.raises(ValueError, match=f"record {key.decode()} cannot be read safely"):
        LmdbReader(path)[0]
    assert not mark.exists()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
def test_a_record_of_garbage_is_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = write(tmp_path_factory.mktemp("garbage") / "a.lmdb", PLAIN | {b"00000000": content})
    with pytest.raises(ValueError, match="record"):
        LmdbReader(path)[0]


@pytest.mark.parametrize(
    "content",
    [
        b"h\x05.",
        b"0.",
        b"\x80\x04)R.",
        b"}]s.",
        b"Vx\n\x93.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
    ids=repr,
)
def test_a_record_that_is_no_sound_pickle_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.lmdb", PLAIN | {b"00000000": content})
    with pytest.raises(ValueError, match="record"):
        LmdbReader(path)[0]


@pytest.mark.parametrize("record", [b"bytes", (b"x",), ("text", 0), [b"x", 0]], ids=repr)
def test_a_record_that_is_not_bytes_and_class_is_rejected(tmp_path: Path, record: object) -> None:
    path = write(tmp_path / "a.lmdb", PLAIN | {b"00000000": pickle.dumps(record)})
    with pytest.raises(ValueError, match=r"record 0+ is not"):
        LmdbReader(path)[0]


@pytest.mark.parametrize("label", ["one", None])
def test_a_label_that_is_no_number_is_rejected(tmp_path: Path, label: object) -> None:
    path = write(tmp_path / "a.lmdb", PLAIN | {b"00000000": pickle.dumps((b"x", label))})
    with pytest.raises(ValueError, match=r"record 0+ is not"):
        LmdbReader(path)[0]


@pytest.mark.parametrize("length", [0, -1, "3", None])
def test_a_length_that_is_no_length_is_rejected(tmp_path: Path, length: object) -> None:
    path = write(tmp_path / "a.lmdb", PLAIN | {b"__len__": pickle.dumps(length)})
    with pytest.raises(ValueError, match="__len__ must be a positive number"):
        LmdbReader(path)


@pytest.mark.parametrize("classes", [3, None])
def test_classes_that_are_no_list_of_names_are_rejected(tmp_path: Path, classes: object) -> None:
    path = write(tmp_path / "a.lmdb", PLAIN | {b"__classes__": pickle.dumps(classes)})
    with pytest.raises(ValueError, match="__classes__"):
        LmdbReader(path)


def test_a_class_index_beyond_the_classes_is_rejected(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"a": 1})
    image = (data / "a" / "0.png").read_bytes()
    path = write(tmp_path / "a.lmdb", PLAIN | {b"00000000": pickle.dumps((image, 7))})
    with pytest.raises(ValueError, match="7"):
        LmdbSource(path).labels  # noqa: B018  (reading it is the test)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({b"00000000_cat.jpg": b"\x08\x03"}, "no record __len__: it is damaged, or no LMDB of images"),
        ({b"__len__": b"", b"__classes__": b""}, "record __len__ cannot be read"),
        (PLAIN | {b"00000000": b""}, "record 00000000 cannot be read"),
        (PLAIN | {b"__len__": pickle.dumps(2), b"5": b"x"}, "no record 00000001"),
    ],
    ids=["another program's", "empty length", "empty record", "a gap"],
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_what_is_no_lmdb_of_images_is_named(
    tmp_path: Path, values: dict[bytes, bytes], message: str, as_folder: bool
) -> None:
    path = tmp_path / "a.lmdb"
    file = path / "data.mdb" if as_folder else path
    file.parent.mkdir(exist_ok=True)
    write(file, values)
    with pytest.raises(ValueError, match=rf"a\.lmdb.*{re.escape(message)}"):
        open_sources(DataConfig(data=str(path)))


@pytest.mark.parametrize("content", [b"", b"text\n" * 2000], ids=["empty", "text"])
def test_another_kind_of_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.lmdb").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.lmdb"):
        LmdbReader(tmp_path / "a.lmdb")


def _read_all(path: Path) -> None:
    try:
        reader = LmdbReader(path)
        for i in range(len(reader)):
            reader[i]
    except ValueError as error:
        sys.exit(3 if path.name in str(error) else 4)


@pytest.mark.parametrize(
    "share",
    [
        0.02,
        *(share for share in (0.3, 0.6, 0.95)),
    ],
)
def test_a_truncated_file_is_rejected_and_does_not_crash(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.lmdb"
    build_lmdb(path, [(os.urandom(3000), i % 2) for i in range(100)], 100, ["a", "b"])
    os.truncate(path, int(share * path.stat().st_size))
    process = start_process(_read_all, path)
    process.join(60)
    assert process.exitcode == 3


def test_no_record_is_unpickled_to_know_its_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [(os.urandom(size), i) for i, size in enumerate((0, 1, 255, 256, 70_000, 300_000))]
    records += [(b"MK" * 9, label) for label in (255, 256, 331, 70_000)]
    records += [(b"tiny", i % 7) for i in range(3000)]
    build_lmdb(tmp_path / "a.lmdb", records, len(records), [str(i) for i in range(70_001)])
    load, loaded = lmdb_file._PlainUnpickler.load, []
    monkeypatch.setattr(
        lmdb_file._PlainUnpickler, "load", lambda self: loaded.append(load(self)) or loaded[-1]
    )
    source = LmdbSource(tmp_path / "a.lmdb")
    monkeypatch.setattr(source.reader, "_index", lambda: None)  # as in a file from elsewhere
    for labels in (source.labels, source.reader.labels()):
        assert labels.tolist() == [label for _, label in records]
    assert [type(each) for each in loaded] == [int, list], "length and classes"


@pytest.mark.parametrize("protocol", range(6))
def test_labels_of_any_pickle_are_read(tmp_path: Path, protocol: int) -> None:
    values = {f"{i:08d}".encode(): pickle.dumps((b"x" * 300 * i, i), protocol) for i in range(3)}
    classes = {b"__len__": pickle.dumps(3), b"__classes__": pickle.dumps(["a", "b", "c"])}
    path = write(tmp_path / "a.lmdb", values | classes)
    if protocol < 3:  # bytes are made by a function there
        with pytest.raises(ValueError, match="cannot be read safely"):
            LmdbReader(path).labels()
    else:
        assert LmdbReader(path).labels().tolist() == [0, 1, 2]


def test_labels_of_records_that_are_written_otherwise_are_read_and_checked(tmp_path: Path) -> None:
    classes = {b"__len__": pickle.dumps(1), b"__classes__": pickle.dumps(["a", "b"])}
    for i, (record, message) in enumerate(
        {
            b"(C\x01xI1\nt.": None,  # a tuple by its mark, a number in digits
            b"\x80\x03C\x01x\x88\x86.": None,  # True
            pickle.dumps((b"x", -1)): "record 0 has class -1",
            pickle.dumps((b"x", 2)): "record 0 has class 2",
            pickle.dumps((b"x", 1, 1)): "record 0 is not",
            b"\x80\x03B\xff\xff\xff\xffxK\x01\x86.": "cannot be read safely",
        }.items()
    ):
        path = write(tmp_path / f"{i}.lmdb", classes | {b"00000000": record})
        if message is None:
            assert LmdbReader(path).labels().tolist() == [1]
        else:
            with pytest.raises(ValueError, match=message):
                LmdbReader(path).labels()


def test_a_reader_survives_a_change_of_the_time(tmp_path: Path) -> None:
    build_lmdb(tmp_path / "a.lmdb", RECORDS, len(RECORDS), ["a", "b"])
    reader = LmdbReader(tmp_path / "a.lmdb")
    assert reader[0] == RECORDS[0]
    os.utime(tmp_path / "a.lmdb", (1, 1))
    assert reader[1] == RECORDS[1]


@pytest.mark.parametrize("length", [2, 1 << 60])
def test_a_length_beyond_the_records_is_rejected(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.lmdb", PLAIN | {b"__len__": pickle.dumps(length)})
    with pytest.raises(ValueError, match=f"__len__ is {length}, and there are only 1 other records"):
        LmdbReader(path)


def test_a_folder_with_an_lmdb_is_read(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", {"a": 40, "b": 40})
    pack_folder(folder, tmp_path / "data" / "data.mdb")
    for data in (tmp_path / "data", tmp_path / "data" / "data.mdb"):
        (tmp_path / data.name).mkdir(exist_ok=True)
        splits = make_splits(tiny_config(data=str(data), in_chans=3), tmp_path / data.name)
        assert splits.classes == ["a", "b"]
        assert sum(len(split) for split in splits.by_name.values()) == 80


def test_an_lmdb_of_another_name_in_a_folder_is_pointed_at(tmp_path: Path) -> None:
    pack_folder(image_folder(tmp_path / "images", {"a": 4, "b": 4}), tmp_path / "data" / "all.lmdb")
    with pytest.raises(ValueError, match=r"named after no split: give one of them, such as .*all\.lmdb"):
        make_splits(tiny_config(data=str(tmp_path / "data"), in_chans=3), tmp_path)


def _read_damaged(path: Path) -> None:
    try:
        LmdbReader(path).labels()
    except ValueError as error:
        sys.exit(3 if path.name in str(error) else 4)


def test_a_damaged_page_ends_in_a_message(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    build_lmdb(path, [(os.urandom(300), i % 2) for i in range(200)], 200, ["a", "b"])
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):
        content[page * 4096 + 8 : page * 4096 + 16] = b"\xff" * 8  # flags and bounds of the page
    path.write_bytes(content)
    process = start_process(_read_damaged, path)
    process.join(60)
    assert process.exitcode == 3


def test_a_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise lmdb.DiskError("no space")

    monkeypatch.setattr(lmdb, "open", fail)
    with pytest.raises(OSError, match=r"a\.lmdb cannot be written: no space"):
        build_lmdb(tmp_path / "a.lmdb", RECORDS, len(RECORDS), ["a", "b"])
    assert not list(tmp_path.iterdir())


def test_a_folder_packed_by_the_command_holds_the_same_files(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"ant": 5, "bee": 7})
    ended = atconv("data", "lmdb", data, tmp_path / "out" / "train.lmdb")
    assert ended.code == 0, ended.err
    packed, folder = LmdbSource(tmp_path / "out" / "train.lmdb"), FolderSource(data)
    assert packed.classes == folder.classes
    assert list(packed.labels) == list(folder.labels)
    assert [packed.encoded(i) for i in range(12)] == [folder.encoded(i) for i in range(12)]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["train.lmdb"]


def test_packing_names_and_leaves_out_what_is_unreadable(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"ant": 2, "bee": 2})
    (data / "ant" / "bad[a].png").write_text("text")
    ended = atconv("data", "lmdb", data, tmp_path / "a.lmdb")
    assert ended.code == 0
    assert "ant/bad[a].png" in ended.err
    assert len(LmdbReader(tmp_path / "a.lmdb")) == 4


def test_packing_never_overwrites(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"ant": 2, "bee": 2})
    (tmp_path / "a.lmdb").write_text("mine")
    with pytest.raises(ValueError, match=r"a\.lmdb exists already"):
        pack_folder(data, tmp_path / "a.lmdb")
    assert (tmp_path / "a.lmdb").read_text() == "mine"


def test_a_folder_that_fails_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def records():
        yield b"x", 0
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        build_lmdb(tmp_path / "a.lmdb", records(), 2, ["a"])
    assert not list(tmp_path.iterdir())


def test_splits_may_be_lmdb_files(tmp_path: Path) -> None:
    for seed, (split, counts) in enumerate({"train": {"a": 4, "b": 4}, "val": {"a": 1, "b": 2}}.items()):
        folder = image_folder(tmp_path / split, counts, seed)
        pack_folder(folder, tmp_path / "data" / f"{split}.lmdb")
    (tmp_path / "run").mkdir()
    config = tiny_config(data=str(tmp_path / "data"), in_chans=3)
    splits = make_splits(config, tmp_path / "run")
    assert {name: len(split) for name, split in splits.by_name.items()} == {"train": 8, "val": 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_trains_on_a_packed_file_and_is_evaluated_on_it(tmp_path: Path, workers: int) -> None:
    data = image_folder(tmp_path / "folder", {"ant": 24, "bee": 24})
    pack_folder(data, tmp_path / "data.lmdb")
    options = tiny_options(in_chans=3, test_fraction=0.2, batch_size=8, base_batch_size=8, workers=workers)
    ended = atconv("train", tmp_path / "data.lmdb", *options, f"--out={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    ended = atconv("evaluate", tmp_path / "run", tmp_path / "data.lmdb", f"--workers={workers}")
    assert ended.code == 0, ended.err


def test_the_index_of_labels_is_read_in_place_of_records_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    build_lmdb(path, RECORDS, len(RECORDS), ["a", "b"])
    reader = LmdbReader(path)
    with mock.patch.object(reader, "_load", side_effect=AssertionError):
        assert reader.labels().tolist() == [0, 1, 1]
    for i, (content, message) in enumerate(
        {b"\0" * 8: "has 8 bytes", b"\2" * 24: "record 0 has class"}.items()
    ):
        values = PLAIN | {b"__len__": pickle.dumps(3), b"1": b"", b"2": b"", b"__labels__": content}
        with pytest.raises(ValueError, match=message):
            LmdbReader(write(tmp_path / f"{i}.lmdb", values)).labels()
    with pytest.raises(ValueError, match="only 1 other records"):
        LmdbReader(write(tmp_path / "few.lmdb", PLAIN | {b"__len__": pickle.dumps(2), b"__labels__": b""}))
