"""Find unreadable images before training, not in its middle."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from atconv.data.images import opened_image, upright
from atconv.data.sources.base import ImageSource
from atconv.engine.progress import progress
from atconv.io import count_of, escape_row, write_rows

__all__ = [
    "CheckImages",
    "FileReport",
    "SkippedFile",
    "TooManyUnreadable",
    "check_files",
    "content_digest",
    "hex_digest",
    "in_threads",
    "list_skipped",
    "log_skipped",
    "name_skipped",
    "save_skipped",
]

logger = logging.getLogger(__name__)

CheckImages = Literal["decode", "header", "none"]
T = TypeVar("T")
_CHUNK = 4096  # files handed to the threads at a time: a million waiting tasks would fill memory


class TooManyUnreadable(ValueError):
    """More files are unreadable than a run may leave out; they are listed in skipped.csv."""


class SkippedFile(NamedTuple):
    """A file that is left out."""

    split: str
    file: str
    reason: str


@dataclass
class FileReport:
    """For every image of a source: why it cannot be used (None: it can), and a digest of its bytes
    (None: not taken)."""

    reasons: list[str | None]
    digests: list[bytes | None]

    @property
    def hex_digests(self) -> list[str]:
        """As split.json has them; "" where a digest was not taken."""
        return ["" if digest is None else hex_digest(digest) for digest in self.digests]


def check_files(source: ImageSource, how: CheckImages) -> FileReport:
    """Read every image of a source, in threads, with a progress bar.

    "decode" decodes each in full; "header" only looks at what kind of image it is; both find copies;
    "none" trusts all. Sources that hold arrays instead of files have nothing to check.
    """
    count = len(source)
    report = FileReport([None] * count, [None] * count)
    if how == "none" or not source.checkable:
        return report
    results = in_threads(lambda i: _check(source, i, how == "decode"), count, "checking images")
    for i, result in enumerate(results):
        report.reasons[i], report.digests[i] = result
    return report


def in_threads(function: Callable[[int], T], count: int, description: str) -> Iterator[T]:
    """`function` of 0 … count − 1, in order, by several threads, with a progress bar."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        chunks = (range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))
        results = (r for chunk in chunks for r in pool.map(function, chunk))
        yield from progress(results, description, count)


def _check(source: ImageSource, index: int, decode: bool) -> tuple[str | None, bytes | None]:
    try:
        encoded = source.encoded(index)
        with opened_image(io.BytesIO(encoded)) as image:
            if decode:
                upright(image, "RGB")
    except (OSError, ValueError) as error:
        return str(error).partition("\n")[0], None
    return None, content_digest(encoded)


def content_digest(encoded: bytes) -> bytes:
    """What a file is known by, whatever its name."""
    return hashlib.blake2b(encoded, digest_size=16).digest()


def hex_digest(digest: bytes) -> str:
    """The part of a digest that tells images of a data set apart."""
    return digest[:8].hex()


def save_skipped(
    path: Path,
    unreadable: Sequence[SkippedFile],
    total: int,
    limit: float,
    copies: Sequence[SkippedFile] = (),
) -> None:
    """List the files that a run leaves out, in place of an earlier list: unreadable ones, and copies of those
    in another split.

    Raises:
        TooManyUnreadable: more than a share of all files are unreadable, or all of them.
    """
    files = [*unreadable, *copies]
    path.unlink(missing_ok=True)
    write_rows(path, [file._asdict() for file in files])
    _reject_too_many(unreadable, total, limit, f"they are listed in {path}, ")
    if files:
        of_them = f"; {len(copies)} of them {'is' if len(copies) == 1 else 'are'} in another split too"
        logger.warning(
            "left out %s, listed in %s%s", count_of(len(files), "file"), path, of_them if copies else ""
        )


def name_skipped(unreadable: Sequence[SkippedFile]) -> None:
    """Name the first files that are left out, and count the others."""
    for file in unreadable[:5]:
        logger.warning("left out %s: %s", *escape_row([file.file, file.reason]))
    if len(unreadable) > 5:
        logger.warning("left out %d more", len(unreadable) - 5)


def log_skipped(unreadable: Sequence[SkippedFile], total: int, limit: float) -> None:
    """Name the files that an evaluation leaves out, as `name_skipped` does.

    Raises:
        TooManyUnreadable: they are more than a share of all files, or all of them.
    """
    name_skipped(unreadable)
    _reject_too_many(unreadable, total, limit)


def list_skipped(files: Sequence[SkippedFile], folder: Path, run: Path) -> None:
    """Write skipped.csv of an evaluation, in place of an earlier one's. In the folder of a run that is the
    list of training, and stays."""
    if folder != run:
        path = folder / "skipped.csv"
        path.unlink(missing_ok=True)
        write_rows(path, [file._asdict() for file in files])


def _reject_too_many(unreadable: Sequence[SkippedFile], total: int, limit: float, listed: str = "") -> None:
    too_many = len(unreadable) > limit * total
    if too_many or 0 < total == len(unreadable):
        allowed = f", more than max_skipped ({limit:.0%}) allows" if too_many else ""
        raise TooManyUnreadable(
            f"{len(unreadable)} of {total} files are unreadable{allowed}; {listed}the first is "
            f"{unreadable[0].file}: {unreadable[0].reason}"
        )
