"""Lay Fashion-MNIST out where torchvision looks for it, from Debian's package. No network."""

from __future__ import annotations

import gzip
import shutil
import zlib
from pathlib import Path

__all__ = ["DEBIAN_FOLDER", "lay_out"]

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_IDX_BYTES = b"\x00\x00\x08"  # how every IDX file of unsigned bytes begins


def lay_out(root: Path, source: Path = DEBIAN_FOLDER) -> Path:
    """Unpack the four files of `source` into root/FashionMNIST/raw, where torchvision reads them.

    Files already there are kept.

    Returns:
        the folder they lie in.

    Raises:
        FileNotFoundError: `source` does not hold them.
        ValueError: one of them is damaged.
    """
    missing = [name for name in _FILES if not (source / f"{name}.gz").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{source / missing[0]}.gz is not there: install Debian's package dataset-fashion-mnist, or give "
            "--source, a folder with the four .gz files of Fashion-MNIST"
        )
    target = root / "FashionMNIST" / "raw"
    target.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if (target / name).exists():
            continue
        temporary = target / f".writing-{name}"
        try:
            with gzip.open(source / f"{name}.gz") as packed, temporary.open("wb") as plain:
                shutil.copyfileobj(packed, plain)
            with temporary.open("rb") as plain:
                if plain.read(3) != _IDX_BYTES:
                    raise EOFError("it does not hold an IDX array of bytes")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            temporary.unlink(missing_ok=True)
            raise ValueError(f"{source / name}.gz is damaged: {error}") from error
        temporary.rename(target / name)
    return target
