"""Turn an image folder into the LMDB format."""

from __future__ import annotations

import logging
from pathlib import Path

from atconv.data.formats import LabelFormat, UnfitData, recognize
from atconv.data.sources.folders import FolderSource, class_splits, open_folder
from atconv.data.sources.lmdb_file import build_lmdb
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
        ValueError: no readable images in it, it holds splits or a table of labels, or `out` exists.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        reason = f"{folder} is a file: give a folder" if folder.exists() else f"no such folder: {folder}"
        raise FileNotFoundError(reason)
    found = recognize(folder)
    if found is not None and not isinstance(found, LabelFormat):
        raise UnfitData(folder, found, "labels")
    if found is not None and found.open is not open_folder:
        raise ValueError(
            f"{folder} is recognized as {found.name}, and only images in folders of classes are packed: "
            "train on it as it is, or put its images into a folder for each class"
        )
    if splits := class_splits(folder):
        names = ", ".join(path.name for path in splits.values())
        first = next(iter(splits.values()))
        raise ValueError(
            f"{folder} holds splits, {names}: pack each into a file of its own, such as atconv data lmdb "
            f"{first} {out.with_name(first.name)}.lmdb"
        )
    source = FolderSource(folder)
    for remark in source.remarks:
        logger.warning(remark)
    split = readable_split(source)
    indices = progress(split.indices, "packing", len(split))
    build_lmdb(out, ((source.encoded(i), source.labels[i]) for i in indices), len(split), source.classes)
    logger.info("written to %s", out)
    return out
