"""Turn an image folder into the LMDB format."""

from __future__ import annotations

import logging
from pathlib import Path

from atconv.data.checking import check_files
from atconv.data.lmdb_format import build_lmdb
from atconv.data.sources import FolderSource
from atconv.engine.progress import progress

__all__ = ["pack_folder"]

logger = logging.getLogger(__name__)


def pack_folder(folder: Path, out: Path) -> Path:
    """Pack folder/CLASS/image files, as they are, into one LMDB file.

    Unreadable images are named and left out.

    Args:
        folder: one folder a class.
        out: the file to write, such as train.lmdb; its folder is made.

    Returns:
        the file.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no readable images in it, or `out` exists.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    source = FolderSource(folder)
    for remark in source.remarks:
        logger.warning(remark)
    report = check_files(source, "decode")
    for i, reason in enumerate(report.reasons):
        if reason is not None:
            logger.warning("left out %s: %s", source.name(i), reason)
    readable = [i for i, reason in enumerate(report.reasons) if reason is None]
    if not readable:
        raise ValueError(f"none of the {len(source)} files in {folder} is a readable image")
    records = ((source.encoded(i), source.labels[i]) for i in progress(readable, "packing"))
    build_lmdb(out, records, len(readable), source.classes)
    logger.info("written to %s", out)
    return out
