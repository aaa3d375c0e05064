"""Turn an image folder into the LMDB format."""

from __future__ import annotations

from pathlib import Path

from atconv.data.checking import check_files
from atconv.data.lmdb_format import build_lmdb
from atconv.data.sources import FolderSource
from atconv.engine.progress import plain_console, track

__all__ = ["build_lmdb_from_folder"]


def build_lmdb_from_folder(folder: Path, out: Path) -> Path:
    """Pack folder/CLASS/picture files, as they are, into one LMDB file.

    Unreadable pictures are named and left out.

    Args:
        folder: one folder a class.
        out: the file to write, such as train.lmdb.

    Returns:
        the file.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no readable pictures in it, or `out` exists.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    console = plain_console()
    source = FolderSource(folder)
    report = check_files(source, "decode", console)
    for i, reason in enumerate(report.reasons):
        if reason is not None:
            console.print(f"left out {source.name(i)}: {reason}", soft_wrap=True)
    kept = [i for i, reason in enumerate(report.reasons) if reason is None]
    if not kept:
        raise ValueError(f"none of the {len(source)} files in {folder} is a readable picture")
    records = ((source.encoded(i), source.labels[i]) for i in track(kept, console, "packing", len(kept)))
    build_lmdb(out, records, len(kept), source.classes)
    return out
