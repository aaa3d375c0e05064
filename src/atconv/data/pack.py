"""Turn an image folder into the LMDB format."""

from __future__ import annotations

import logging
from pathlib import Path

from atconv.data.formats import LabelFormat, UnfitData, recognize
from atconv.data.lmdb_format import build_lmdb
from atconv.data.sources import FolderSource
from atconv.data.splits import readable_split
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
    found = recognize(folder)
    if found is not None and not isinstance(found, LabelFormat):
        raise UnfitData(folder, found, "labels")
    source = FolderSource(folder)
    for remark in source.remarks:
        logger.warning(remark)
    split = readable_split(source)
    indices = progress(split.indices, "packing", len(split))
    build_lmdb(out, ((source.encoded(i), source.labels[i]) for i in indices), len(split), source.classes)
    logger.info("written to %s", out)
    return out
