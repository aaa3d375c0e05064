"""Unpack Fashion-MNIST from Debian's package to where torchvision looks for it. No network.

python -m studies.datasets.fashion_mnist ROOT [--source FOLDER]
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from pathlib import Path

from studies.datasets import run_command

__all__ = ["DEBIAN_FOLDER", "unpack_fashion_mnist"]

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_IDX_BYTES = b"\x00\x00\x08"  # how every IDX file of unsigned bytes begins


def unpack_fashion_mnist(root: Path, source: Path = DEBIAN_FOLDER) -> Path:
    """Unpack the four files of Fashion-MNIST into ROOT/FashionMNIST/raw, where torchvision reads them.

    Files that exist already stay as they are.

    Args:
        root: folder to write to.
        source: folder with the four .gz files.

    Returns:
        the folder of the unpacked files.

    Raises:
        FileNotFoundError: `source` does not hold the files.
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
        if not (target / name).exists():
            _unpack(source / f"{name}.gz", target / name)
    return target


def _unpack(source: Path, target: Path) -> None:
    temporary = target.with_name(f".writing-{target.name}")
    try:
        with gzip.open(source) as packed, temporary.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
        with temporary.open("rb") as plain:
            if plain.read(3) != _IDX_BYTES:
                raise EOFError("it does not hold an IDX array of bytes")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"{source} is damaged: {error}") from error
    temporary.rename(target)


if __name__ == "__main__":
    run_command(unpack_fashion_mnist)
