"""The release's LMDB of images: one file, read without building any object but plain data. A folder with
data.mdb is read as well.

Keys: `__len__` → pickled int, `__classes__` → pickled list of class names, and `f"{i:08d}"` → pickled
(encoded image bytes, class index). Files from `build_lmdb` have `__labels__` too, all class indices as 64-bit
integers, little-endian: without it the end of every record is read to know them.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import numpy as np
from numpy.typing import NDArray

__all__ = ["LmdbReader", "build_lmdb", "is_lmdb"]

_LENGTH = b"__len__"
_CLASSES = b"__classes__"
_LABELS = b"__labels__"
_BATCH = 1000  # records in one write transaction
T = TypeVar("T")


# A pickled tuple up to its first item, which is bytes: protocol, frame, and the length as 1, 4 or 8 bytes.
_IMAGE_HEAD = re.compile(rb"\x80.(?:\x95.{8})?(?:C(.)|B(.{4})|\x8e(.{8}))", re.DOTALL)
# And from there on: a frame after long images, a number of 1, 2 or 4 bytes, and the end of a pair.
_LABEL_TAIL = re.compile(rb"(?:\x95.{8})?(?:\x94|q.)?(?:K(.)|M(..)|J(.{4}))\x86(?:\x94|q.)?\.", re.DOTALL)


def is_lmdb(path: Path) -> bool:
    """Whether a file starts like an LMDB, or a folder holds one."""
    file = path / "data.mdb" if path.is_dir() else path
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(20)[16:] == b"\xde\xc0\xef\xbe"


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, bytes and containers; resolves no class, so runs no code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not plain data")


class LmdbReader:
    """Random access to such a file.

    Raises:
        ValueError: not such a file, a truncated one, or a record that is not plain data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / "data.mdb" if path.is_dir() else path
        length, classes = self._load(_LENGTH), self._load(_CLASSES)
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"{path}: __len__ must be a positive number, got {length!r}")
        others = _open(self.path).stat()["entries"] - 2 - (self._get(_LABELS) is not None)
        if length > others:
            raise ValueError(f"{path}: __len__ is {length}, and there are only {others} other records")
        if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"{path}: __classes__ must be a list of names, got {str(classes)[:80]}")
        self._length = length
        self.classes: list[str] = list(classes)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self._checked(index, self._load(_key(index)))

    def labels(self) -> NDArray[np.int64]:
        """The class index of every record. Without `__labels__`, only the ends of records are read, and a
        record is unpickled where it is written in another way than usual."""
        if (index := self._index()) is not None:
            return index
        return np.fromiter(map(self._label, range(len(self))), np.int64, len(self))

    def _label(self, index: int) -> int:
        label = self._get(_key(index), _label_at_end)
        return self[index][1] if label is None else self._checked(index, (b"", label))[1]

    def _index(self) -> NDArray[np.int64] | None:
        content = self._get(_LABELS)
        if content is None:
            return None
        if len(content) != 8 * len(self):
            raise ValueError(f"{self.path}: __labels__ has {len(content)} bytes for {len(self)} records of 8")
        labels = np.frombuffer(content, "<i8").astype(np.int64)
        for i in np.flatnonzero((labels < 0) | (labels >= len(self.classes)))[:1].tolist():
            self._checked(i, (b"", int(labels[i])))
        return labels

    def _checked(self, index: int, record: Any) -> tuple[bytes, int]:
        plain = isinstance(record, tuple) and len(record) == 2
        if not plain or not isinstance(record[0], bytes) or not isinstance(record[1], int):
            raise ValueError(f"{self.path}: record {index} is not (bytes, class index)")
        if not 0 <= record[1] < len(self.classes):
            raise ValueError(
                f"{self.path}: record {index} has class {record[1]}, there are {len(self.classes)} classes"
            )
        return record[0], int(record[1])

    def _get(self, key: bytes, read: Callable[[memoryview], T] = bytes) -> T | None:  # type: ignore[assignment]
        """What `read` makes of a record; None where there is none."""
        try:
            with _open(self.path).begin(buffers=True) as transaction:
                view = transaction.get(key)
                return None if view is None else read(view)
        except lmdb.Error as error:
            raise ValueError(
                f"{self.path} is damaged: record {key.decode()} cannot be read ({error})"
            ) from error

    def _load(self, key: bytes) -> Any:
        value = self._get(key)
        if value is None:
            raise ValueError(f"{self.path}: no record {key.decode()}: it is damaged, or no LMDB of images")
        try:
            return _PlainUnpickler(io.BytesIO(value)).load()
        except Exception as error:  # on arbitrary bytes unpickling raises nearly anything, MemoryError too
            raise ValueError(f"{self.path}: record {key.decode()} cannot be read safely: {error}") from error


def _key(index: int) -> bytes:
    return f"{index:08d}".encode()


def _label_at_end(record: memoryview) -> int | None:
    """The second item of a pickled pair of bytes and a number, without unpickling it; None for others."""
    head = _IMAGE_HEAD.match(bytes(record[:32]))
    if head is None or head.lastindex is None:
        return None
    length = int.from_bytes(head[head.lastindex], "little")
    tail = _LABEL_TAIL.fullmatch(bytes(record[head.end() + length :]))
    if tail is None or tail.lastindex is None:
        return None
    return int.from_bytes(tail[tail.lastindex], "little", signed=tail.lastindex == 3)


# The open environment of each file, and the process that opened it: LMDB rejects a second in a process, and
# one that was inherited through a fork. A file that is open keeps its inode, whatever its name and time.
_environments: dict[tuple[int, int], tuple[int, lmdb.Environment]] = {}


def _open(path: Path) -> lmdb.Environment:
    try:
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        owner, environment = _environments.get(key, (0, None))
        if environment is not None and owner != os.getpid():
            environment.close()  # this process's copy alone
            environment = None
        if environment is None:
            environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
            _check_complete(environment, status.st_size, path)
            _environments[key] = (os.getpid(), environment)
        return environment
    except (lmdb.Error, OSError) as error:
        raise ValueError(f"{path} is not an LMDB file ({error})") from error


def _check_complete(environment: lmdb.Environment, size: int, path: Path) -> None:
    """Reading past the end of a truncated file would kill the process."""
    pages = environment.info()["last_pgno"] + 1
    needed = pages * environment.stat()["psize"]
    if size < needed:
        environment.close()
        raise ValueError(f"{path} is truncated: it has {size} of {needed} bytes")


def build_lmdb(path: Path, records: Iterable[tuple[bytes, int]], count: int, classes: list[str]) -> None:
    """Write encoded images and their class indices as one such file.

    The file appears under its name once it is complete.

    Args:
        records: `count` pairs of encoded bytes and class index.

    Raises:
        ValueError: `path` exists.
        OSError: it cannot be written; nothing is left.
    """
    if path.exists():
        raise ValueError(f"{path} exists already; name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}")
    try:
        temporary.unlink(missing_ok=True)
        environment = lmdb.open(str(temporary), subdir=False, map_size=1 << 40, lock=False, writemap=False)
    except lmdb.Error as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    try:
        batch: list[tuple[bytes, bytes]] = [
            (_LENGTH, pickle.dumps(count, protocol=4)),
            (_CLASSES, pickle.dumps(classes, protocol=4)),
        ]
        labels = []
        for i, (encoded, label) in enumerate(records):
            labels.append(int(label))
            batch.append((_key(i), pickle.dumps((encoded, int(label)), protocol=4)))
            if len(batch) >= _BATCH:
                _put(environment, batch)
                batch = []
        _put(environment, [*batch, (_LABELS, np.array(labels, "<i8").tobytes())])
        environment.sync(True)
        environment.close()
        os.replace(temporary, path)
    except BaseException as error:
        environment.close()
        temporary.unlink(missing_ok=True)
        if isinstance(error, lmdb.Error):
            raise OSError(f"{path} cannot be written: {error}") from error
        raise


def _put(environment: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    with environment.begin(write=True) as transaction:
        for key, value in batch:
            transaction.put(key, value)
