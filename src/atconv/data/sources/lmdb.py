"""Images in the release's LMDB files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from atconv.data.config import DataConfig
from atconv.data.folders import paths_by_split, split_of
from atconv.data.sources.base import ImageSource, check_train
from atconv.data.sources.lmdb_file import LmdbReader, is_lmdb

__all__ = ["LmdbSource", "lmdb_files", "open_lmdb"]


class LmdbSource(ImageSource):
    """A file in the release's LMDB format (see `lmdb_file`)."""

    checkable = True

    def __init__(self, path: Path) -> None:
        self.reader = LmdbReader(path)
        super().__init__(str(path), self.reader.classes, self.reader.labels())

    def file(self, index: int) -> BinaryIO:
        return io.BytesIO(self.reader[index][0])


def lmdb_files(data: Path) -> list[Path]:
    """The LMDB files that DATA is: itself, or those in a folder."""
    if data.is_dir() and not is_lmdb(data):
        return [file for file in sorted(data.glob("*.lmdb")) if is_lmdb(file) or split_of(file.stem)]
    return [data] if data.exists() and (is_lmdb(data) or data.suffix.lower() in (".lmdb", ".mdb")) else []


def open_lmdb(config: DataConfig) -> dict[str, ImageSource]:
    """LMDB files by split, or one that is all there is.

    Raises:
        ValueError: one is damaged, or none is named after the training split.
    """
    path = Path(config.data)
    files = lmdb_files(path)
    if files == [path]:
        return {"train": LmdbSource(path)}
    named = paths_by_split(files)
    if not named:
        raise ValueError(
            f"{path} holds LMDB files that are named after no split: give one of them, such as {files[0]}"
        )
    check_train(path, named)
    return {split: LmdbSource(file) for split, file in named.items()}
