"""What readers of box files share: text, names of images, and what may be wrong with a box."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from atconv.io import read_bytes

__all__ = [
    "FIX",
    "PIXEL_SLACK",
    "TOO_LARGE",
    "as_seen",
    "box_problem",
    "clip_corners",
    "leads_outside",
    "local_name",
    "path_inside",
    "read_lines",
    "read_names",
    "read_start",
    "url_ends",
]

FIX = "fix it or remove it"
PIXEL_SLACK = 1.0  # that a box may reach over its image: annotations are rounded, and some tools count from 0
TOO_LARGE = 1e9  # pixels; 32-bit floats still represent them
_URL = re.compile(r"[a-z][a-z0-9+.-]+://|/data/(upload|local-files)/", re.IGNORECASE)

Corners = tuple[float, float, float, float]


def read_names(path: Path) -> list[str]:
    """The names of classes in a file, one a line.

    Raises:
        ValueError: it cannot be read, or a line is blank.
    """
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise ValueError(f"{path}, line {1 + names.index('')}: it is blank, and each line names a class")
    return names


def read_lines(path: Path, names: bool = False) -> list[str]:
    """The lines of a text file; where these are `names` of files, of any bytes.

    Raises:
        ValueError: it cannot be read, or is not UTF-8: the line is named.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig", "surrogateescape" if names else "strict").splitlines()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: it is not UTF-8: save it as such") from error


def read_start(path: Path) -> bytes:
    """The first bytes of a file, which show what it is."""
    with path.open("rb") as file:
        return file.read(4096)


def leads_outside(name: str, folder: Path, root: Path) -> bool:
    """Whether the name of an image, relative to a folder, leads out of `root` by itself: it is absolute, or
    has "..". Links that lie in a folder are its owner's, and followed."""
    upwards = ".." in re.split(r"[/\\]", name)
    if not upwards and not os.path.isabs(name) and not PureWindowsPath(name).drive:
        return False
    if PureWindowsPath(name).drive and os.name != "nt":
        return True
    path = folder / name.replace("\\", "/")
    inside = not upwards and Path(os.path.abspath(path)).is_relative_to(root.absolute())
    return not inside and not path.resolve().is_relative_to(root.resolve())


def path_inside(name: str, roots: Sequence[Path]) -> Path | None:
    """What exists in one of the folders under the longest end of a path: train/images for ../train/images or
    for /content/street/train/images, which are what tools write. It never leads out of them."""
    candidates = (root / end for end in _ends(name) or [""] for root in roots)  # of "." nothing is left
    return next((path for path in candidates if os.path.exists(path)), None)


def _ends(name: str) -> list[str]:
    """The ends of a path that lead down, longest first."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    start = max((i + 1 for i, part in enumerate(parts) if part == ".."), default=0)
    return ["/".join(parts[i:]) for i in range(start, len(parts))]


def url_ends(name: str) -> list[str]:
    """Where the image of a URL may lie in a folder, longest path first; also of the names that Label Studio
    gives, /data/upload/1/x.jpg and /data/local-files/?d=images/x.jpg. Nothing for names of files."""
    try:
        url = urlsplit(name) if _URL.match(name) else None
    except ValueError:  # of a host that is none
        return []
    return _ends(parse_qs(url.query).get("d", [unquote(url.path)])[0]) if url else []


def local_name(name: str, folders: Sequence[Path]) -> str:
    """The name of a file: for a URL the end of its path that exists in a folder, else its last part."""
    ends = url_ends(name)
    found = (end for end in ends for folder in folders if os.path.isfile(folder / end))
    return next(found, ends[-1]) if ends else name


def box_problem(corners: Corners, size: tuple[int, int], slack: float, given: str) -> str | None:
    """What is wrong with a box, or None.

    Args:
        corners: left, top, right, bottom.
        size: width and height of the image; (1, 1) for boxes in 0 … 1.
        slack: how far it may reach over its image, since annotations are rounded.
        given: the box as the file has it.
    """
    left, top, right, bottom = corners
    width, height = size
    if right <= left or bottom <= top:
        return f"its box {given} has no extent: {FIX}"
    over = right > width + slack or bottom > height + slack or left >= width or top >= height
    if over or min(left, top) < -slack:
        pixels = "" if size == (1, 1) else f" of {width} × {height} pixels"
        return f"its box {given} reaches out of its image{pixels}: {FIX}"
    seen = as_seen(corners, size)
    if (seen[:2] >= seen[2:]).any():
        return f"nothing of its box {given} lies in its image: {FIX}"
    return None


def clip_corners(corners: Corners, size: tuple[int, int]) -> Corners:
    """A box, clipped to its image of a width and height."""
    left, top, right, bottom = corners
    return max(0.0, left), max(0.0, top), min(right, float(size[0])), min(bottom, float(size[1]))


def as_seen(corners: Corners, size: tuple[int, int]) -> NDArray[np.float32]:
    """The clipped box, as a detector sees it."""
    return np.array(clip_corners(corners, size), dtype=np.float32)
