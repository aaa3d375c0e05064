"""Which files lie in a folder: all of some kind but hidden ones, those of runs and what tools have left."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from atconv.data.images import image_suffixes

__all__ = [
    "Listing",
    "find_images",
    "holds_runs",
    "images_in",
    "is_ignored",
    "is_run",
    "leads_down",
    "list_files",
    "list_images",
    "scan",
]

# What systems, file managers, storage servers and other tools leave in folders, in lower case.
_TOOL_FOLDERS = {
    "@eadir", "@recycle", "@synoresource", "@tmp", "@__thumb", "#recycle", "#snapshot", "$recycle.bin",
    "__macosx", "__pycache__", "_macosx", "_svn", "_vti_cnf", "_vti_pvt", "cvs", "found.000", "lost+found",
    "network trash folder", "node_modules", "recycle bin", "recycled", "recycler",
    "system volume information", "temporary items",
}  # fmt: skip
_TOOL_FILES = {"desktop.ini", "thumbs.db", "ehthumbs.db", "icon\r"}


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or a tool's own."""
    return name.startswith(".") or name.lower() in _TOOL_FOLDERS or name.lower() in _TOOL_FILES


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run. One that cannot be read is none, and is named where it is listed."""
    marks = ("split.json", "metrics.csv", "checkpoints", "config.json", "log.txt")
    return os.path.isfile(path / "config.yaml") and any(os.path.exists(path / name) for name in marks)


def holds_runs(folder: str | Path) -> bool:
    """Whether a folder is that of a run, or the usual runs/ with one in it: its images are no data."""
    path = Path(folder)
    return is_run(path) or (path.name.lower() == "runs" and any(is_run(path / e.name) for e in scan(path)))


@dataclass
class Listing:
    """What lies below a folder."""

    files: list[str] = field(default_factory=list)
    """names of those that are looked for, relative to the folder, sorted"""
    others: Counter[str] = field(default_factory=Counter)
    """how many other files there are, by suffix"""
    tool_folders: list[str] = field(default_factory=list)
    """folders of runs, and those that tools have left, which were not searched"""


def list_images(folder: Path) -> Listing:
    """The image files below a folder; see `list_files`."""
    return list_files(folder, image_suffixes())


def list_files(folder: Path, suffixes: frozenset[str]) -> Listing:
    """The files of some suffixes, in lower case, below a folder, without hidden ones, those of runs and what
    tools have left. Links to folders are followed in the folder itself, not below, and never back up.

    Raises:
        ValueError: a folder cannot be read.
    """
    listing = Listing()
    _list_into(listing, os.fspath(folder), "", suffixes)
    return listing


def scan(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=attrgetter("name"))
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be read ({error.strerror}): allow it to be read, or move it elsewhere"
        ) from error


def _list_into(listing: Listing, folder: str, prefix: str, suffixes: frozenset[str]) -> None:
    for entry in scan(folder):
        name = entry.name
        if name[name.rfind(".") :] in suffixes and name[0] != "." and entry.is_file(follow_symlinks=False):
            listing.files.append(prefix + name)  # nearly all entries: what follows would cost as much again
        elif is_ignored(name):
            if not name.startswith(".") and entry.is_dir(follow_symlinks=False):
                listing.tool_folders.append(prefix + name)
        elif entry.is_dir(follow_symlinks=False) or (not prefix and leads_down(entry, folder)):
            if holds_runs(entry.path):
                listing.tool_folders.append(prefix + name)
                continue
            _list_into(listing, entry.path, f"{prefix}{name}/", suffixes)
        elif not os.path.isdir(entry.path):  # a broken link is listed, and then found unreadable
            suffix = os.path.splitext(name)[1].lower()
            if suffix in suffixes:
                listing.files.append(prefix + name)
            else:
                listing.others[suffix] += 1


def leads_down(link: os.DirEntry[str], folder: str) -> bool:
    """Whether an entry of a folder is a link to another folder, and not to one that the folder lies in."""
    target, here = os.path.realpath(link.path), os.path.realpath(folder)
    return os.path.isdir(target) and os.path.commonpath([target, here]) != target


def images_in(folder: Path) -> list[Path]:
    """The image files of `list_images`."""
    return [folder / name for name in list_images(folder).files]


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Files, folders (searched through) and globs → image files, each once, in order.

    Raises:
        FileNotFoundError: a pattern matches nothing, a folder holds no images, or tar files alone.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        path, tars = Path(pattern), False
        if path.is_dir():
            listing = list_images(path)
            matches, tars = [path / name for name in listing.files], ".tar" in listing.others
        elif path.is_file():
            matches = [path]
        else:
            # Second, with the folder taken as it is: names such as "scan [1]" look like patterns.
            literal = str(Path(glob.escape(str(path.parent))) / path.name)
            names = glob.glob(pattern, recursive=True) or glob.glob(literal)
            matches = sorted(p for p in map(Path, names) if p.is_file())
        if matches and all(match.suffix.lower() == ".tar" for match in matches):
            matches, tars = [], True
        if not matches:
            raise FileNotFoundError(
                f"no image at {pattern!r}, only tar files: atconv train, evaluate and probe read shards; "
                "unpack them for this command"
                if tars
                else f"no image at {pattern!r}: give files, folders or globs of images, such as .jpg or .png"
            )
        files.update(dict.fromkeys(matches))
    return list(files)
