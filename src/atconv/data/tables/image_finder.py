"""Finds the images that a table names, in one folder and those in it, and nowhere else."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from atconv.data.boxes.reading import url_ends
from atconv.data.folders import image_folders, split_of, subfolders
from atconv.data.images import image_suffixes
from atconv.io import first_few

__all__ = ["ImageFinder", "Place"]


class Place(NamedTuple):
    """Where an image lies."""

    folder: Path
    name: str
    """relative to the folder"""


class ImageFinder:
    """Finds images by name: in the folder, in its images/ and the folder of their split, else in one of the
    folders next to these.

    Args:
        folder: names are relative to it.
        split: that the images are of, where the folders of others must not be searched.
    """

    def __init__(self, folder: Path, split: str | None) -> None:
        first = [folder, *image_folders(folder)]
        first += [
            child for place in first for child in subfolders(place) if split and split_of(child.name) == split
        ]
        others = [c for c in subfolders(folder) if c not in first and not (split and split_of(c.name))]
        self.folder, self._first, self._others = folder, first, others + image_folders(*others)
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> Place | str:
        """Where an image lies, its name with or without suffix; or why it was not found."""
        if not name:
            return "no image is named"
        if ends := url_ends(name):
            local = (place for place in map(self.find, ends) if isinstance(place, Place))
            return next(
                local, f"{name} is a URL, and {ends[-1]} does not exist in {self.folder}: download it"
            )
        inside = os.path.relpath(name, os.path.abspath(self.folder)) if os.path.isabs(name) else name
        path = posixpath.normpath(inside)
        if path == ".." or path.startswith("../"):
            return f"{name} lies outside {self.folder}: give the folder that holds all images as --images"
        old = os.fsdecode(path.encode("cp1252", "ignore"))  # as unpacked from an archive of old
        for spelled in dict.fromkeys((path, posixpath.normpath(path.replace("\\", "/")), old)):
            near = (found for folder in self._first if (found := self._in(folder, spelled)))
            if found := next(near, None):
                return found
            places = [found for folder in self._others if (found := self._in(folder, spelled))]
            if len(places) > 1:
                return f"{name} lies in several folders: {first_few([str(place[0]) for place in places])}"
            if places:
                return places[0]
        return f"{name} does not exist in {self.folder}"

    def _in(self, folder: Path, name: str) -> Place | str | None:
        """An image by its name in a folder."""
        inner, _, last = name.rpartition("/")
        if inner.startswith("../") or inner == ".." or "\0" in name:
            return None
        matches = self._list(f"{folder}/{inner}").get(last, [])
        if last in matches or len(matches) == 1:
            last = last if last in matches else matches[0]
            return Place(folder, f"{inner}/{last}" if inner else last)
        return f"{name} may be {' or '.join(matches)}: write the suffix" if matches else None

    def _list(self, folder: str) -> dict[str, list[str]]:
        """The files of a folder by their name, and images also by their name without suffix."""
        if folder not in self._listed:
            names: dict[str, list[str]] = defaultdict(list)
            for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                names[entry].append(entry)
                stem, suffix = os.path.splitext(entry)
                if suffix.lower() in image_suffixes() and not entry.startswith("."):
                    names[stem].append(entry)
            self._listed[folder] = dict(names)
        return self._listed[folder]
