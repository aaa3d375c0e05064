"""The release's LMDB of pictures: one file, read without building any object but plain data.

Keys: `__len__` → pickled int, `__classes__` → pickled list of class names, and `f"{i:08d}"` → pickled
(encoded picture bytes, class index).
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
    """Random access to such a file; opens it anew in every process that reads.

    Raises:
        ValueError: not such a file, or a record that is not plain data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._environment: tuple[int, lmdb.Environment] | None = None
        self._length = self._load(_LENGTH)
        self.classes: list[str] = [str(name) for name in self._load(_CLASSES)]
        if not isinstance(self._length, int) or self._length < 1:
            raise ValueError(f"{path}: __len__ must be a positive number, got {self._length!r}")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        record = self._load(f"{index:08d}".encode())
        if not (isinstance(record, tuple) and len(record) == 2 and isinstance(record[0], bytes)):
            raise ValueError(f"{self.path}: record {index} is not (bytes, class)")
        return record[0], int(record[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None}

    def _load(self, key: bytes) -> Any:
        with self._open().begin() as transaction:
            value = transaction.get(key)
        if value is None:
            raise ValueError(f"{self.path}: no record {key.decode()}; is it an LMDB of pictures?")
        try:
            return _PlainUnpickler(io.BytesIO(value)).load()
        except (pickle.UnpicklingError, EOFError, IndexError, ValueError) as error:
            raise ValueError(f"{self.path}: record {key.decode()} cannot be read safely: {error}") from error

    def _open(self) -> lmdb.Environment:
        if self._environment is None or self._environment[0] != os.getpid():
            try:
                opened = lmdb.open(str(self.path), subdir=False, readonly=True, lock=False, readahead=False)
            except lmdb.Error as error:
                raise ValueError(f"{self.path} is not an LMDB file ({error})") from error
            self._environment = (os.getpid(), opened)
        return self._environment[1]


def build_lmdb(path: Path, records: Iterable[tuple[bytes, int]], count: int, classes: list[str]) -> None:
    """Write encoded pictures and their class indices as one such file.

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
    except BaseException:
        environment.close()
        temporary.unlink(missing_ok=True)
        raise


def _put(environment: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    with environment.begin(write=True) as transaction:
        for key, value in batch:
            transaction.put(key, value)
