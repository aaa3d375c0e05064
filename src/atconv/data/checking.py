"""Find unreadable images before training, not in its middle."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

from PIL import Image

from atconv.data.images import open_header, read_image
from atconv.data.sources import ImageSource
from atconv.engine.progress import progress

__all__ = ["FileReport", "TooManyUnreadable", "check_files", "in_threads"]

T = TypeVar("T")
_CHUNK = 4096  # files handed to the threads at a time: a million waiting tasks would fill memory


class TooManyUnreadable(ValueError):
    """More files are unreadable than a run may leave out; they are listed in skipped.csv."""


@dataclass
class FileReport:
    """For every image of a source: why it cannot be used (None: it can), and a digest of its bytes
    (None: not taken)."""

    reasons: list[str | None]
    digests: list[bytes | None]


def check_files(source: ImageSource, how: Literal["decode", "header", "none"]) -> FileReport:
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
        if not decode:
            open_header(io.BytesIO(encoded))
        else:
            read_image(io.BytesIO(encoded))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error).partition("\n")[0], None
    return None, hashlib.blake2b(encoded, digest_size=16).digest()
