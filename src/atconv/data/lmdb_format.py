"""The release's LMDB of images: one file, read without building any object but plain data.

Keys: `__len__` → pickled int, `__classes__` → pickled list of class names, and `f"{i:08d}"` → pickled
(encoded image bytes, class index).
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb

__all__ = ["LmdbReader", "build_lmdb"]

_LENGTH = b"__len__"
_CLASSES = b"__classes__"
_BATCH = 1000  # records in one write transaction


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
        self.path = path
        length, classes = self._load(_LENGTH), self._load(_CLASSES)
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"{path}: __len__ must be a positive number, got {length!r}")
        if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"{path}: __classes__ must be a list of names, got {str(classes)[:80]}")
        self._length = length
        self.classes: list[str] = list(classes)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        record = self._load(f"{index:08d}".encode())
        plain = isinstance(record, tuple) and len(record) == 2
        if not plain or not isinstance(record[0], bytes) or not isinstance(record[1], int):
            raise ValueError(f"{self.path}: record {index} is not (bytes, class index)")
        if not 0 <= record[1] < len(self.classes):
            raise ValueError(
                f"{self.path}: record {index} has class {record[1]}, there are {len(self.classes)} classes"
            )
        return record[0], int(record[1])

    def _load(self, key: bytes) -> Any:
        with _open(self.path).begin() as transaction:
            value = transaction.get(key)
        if value is None:
            raise ValueError(f"{self.path}: no record {key.decode()}; is it an LMDB of images?")
        try:
            return _PlainUnpickler(io.BytesIO(value)).load()
        except Exception as error:  # on arbitrary bytes unpickling raises nearly anything, MemoryError too
            raise ValueError(f"{self.path}: record {key.decode()} cannot be read safely: {error}") from error


# The open environment of each file, and the process that opened it: LMDB rejects a second in a process, and
# one that was inherited through a fork.
_environments: dict[tuple[str, int, int], tuple[int, lmdb.Environment]] = {}


def _open(path: Path) -> lmdb.Environment:
    try:
        status = path.stat()
        key = (str(path.resolve()), status.st_ino, status.st_mtime_ns)
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
    """
    if path.exists():
        raise ValueError(f"{path} exists already; name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}")
    temporary.unlink(missing_ok=True)
    environment = lmdb.open(str(temporary), subdir=False, map_size=1 << 40, lock=False, writemap=False)
    try:
        batch: list[tuple[bytes, bytes]] = [
            (_LENGTH, pickle.dumps(count, protocol=4)),
            (_CLASSES, pickle.dumps(classes, protocol=4)),
        ]
        for i, (encoded, label) in enumerate(records):
            batch.append((f"{i:08d}".encode(), pickle.dumps((encoded, label), protocol=4)))
            if len(batch) >= _BATCH:
                _put(environment, batch)
                batch = []
        _put(environment, batch)
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
