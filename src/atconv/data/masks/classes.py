"""The classes of masks, and what stands for each in a file: an index, a value or a color."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atconv.data.annotated import raise_problems
from atconv.data.config import MaskOptions
from atconv.data.images import opened_image
from atconv.io import check_file, count_of, first_few

__all__ = ["IGNORED", "MaskClasses", "find_table", "is_jpeg", "missing_table", "read_classes", "read_mask"]

IGNORED = 255
"""of class indices: no class"""

_TABLES = ("classes.txt", "class_dict.csv", "classes.csv", "labelmap.txt", "label_colors.txt", "_classes.csv")
_NO_CLASS = {"void", "ignore", "ignored"}
_RGB = r"(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})"
_COLORED = (
    re.compile(rf"(?P<name>\S.*?)[\s,;:]+{_RGB}(?::.*)?"),  # CVAT has more after it
    re.compile(rf"{_RGB}[\s,;:]+(?P<name>\S.*)"),
    re.compile(r"(?P<name>\S.*?)[\s,;:]+#(?P<r>[\da-fA-F]{2})(?P<g>[\da-fA-F]{2})(?P<b>[\da-fA-F]{2})"),
)
_VALUED = re.compile(r"(?P<value>\d{1,3})\s*,\s*(?P<name>\S.*)")
_COLUMNS = {
    "name": ("name", "class", "label", "class name", "class_name"),
    "value": ("value", "pixel value", "index", "id"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
}
_APART = 48  # values of classes in JPEG files, or more
_JPEG_NOISE = 12


class _Row(NamedTuple):
    """A class of a table."""

    name: str
    code: int | None = None
    """a value, or a color as one number"""
    colored: bool = False


@dataclass(frozen=True)
class MaskClasses:
    """Classes, and what masks hold for each."""

    table: Path
    names: list[str]
    codes: tuple[int, ...]
    """values of gray masks; of masks with colors, each color as one number"""
    ignored: tuple[int, ...]
    """codes of no class"""
    colored: bool

    def read(self, path: Path) -> NDArray[np.uint8]:
        """The class indices of a mask file, H W; `IGNORED` where there is no class.

        Raises:
            ValueError: it is unreadable, or holds what stands for no class.
        """
        return self.indices(read_mask(path, self.colored), path)

    def describe(self, codes: Iterable[int]) -> str:
        """Values or colors in words."""
        return _describe(codes, self.colored)

    def indices(self, pixels: NDArray[np.int32], path: Path) -> NDArray[np.uint8]:
        """`read` of a file that is read already."""
        if pixels.ndim == 3 and not self.colored:
            found = _describe(np.unique(_pack(pixels)), True)
            raise ValueError(
                f"{path.name} holds the colors {found}: {self.table} has none; write the color of each class "
                "after its name there, such as road 128 64 128 or road #804080"
            )
        known = np.array([*self.codes, *self.ignored])
        indices = np.array([*range(len(self.codes)), *[IGNORED] * len(self.ignored)], np.uint8)
        if is_jpeg(path):
            pixels = _nearest(pixels, known)
        codes, order = _pack(pixels), np.argsort(known)
        places = order[np.searchsorted(known[order], codes).clip(max=len(known) - 1)]
        unknown = codes[known[places] != codes]
        if unknown.size:
            raise ValueError(self._unknown(path, unknown))
        return indices[places]

    def _unknown(self, path: Path, codes: NDArray[np.int32]) -> str:
        values, counts = np.unique(codes, return_counts=True)
        found = self.describe(values[np.argsort(-counts, kind="stable")])
        jpeg = "JPEG changes values, save masks as PNG; " if is_jpeg(path) else ""
        start = f"{path.name} holds {found} ({count_of(len(codes), 'pixel')}): {jpeg}"
        if self.colored:
            return (
                f"{start}{self.table.name} has other colors. Add them there, called void where pixels are "
                "to be left out; or take all colors out of it where masks hold indices"
            )
        range_ = self.codes == tuple(range(len(self.codes)))
        names = f"names 0 … {len(self.codes) - 1}" if range_ else f"has classes for {list(self.codes)}"
        return (
            f"{start}{self.table.name} {names}, and {first_few([*map(str, self.ignored)])} is ignored. Where "
            "masks hold other values for the classes, list them in their order, such as --mask-values "
            "'[0, 255]'; --ignored-values '[0, 255]' leaves pixels out"
        )


def read_classes(table: Path, options: MaskOptions) -> MaskClasses:
    """The classes that a table names, and what masks hold for each.

    Lines of a text file are names, the first for index 0, or names with colors: "road 128 64 128",
    "road #804080", "128 64 128 road". A CSV file has columns name, r, g, b, or a value and a name. What is
    called void or ignore is no class.

    Raises:
        ValueError: the table cannot be read, two classes are alike, or `mask_values` do not fit.
    """
    rows = _rows(table)
    names = [row.name for row in rows]
    classes = [i for i, name in enumerate(names) if name.lower() not in _NO_CLASS]
    if len(classes) < 2 or len(set(names)) < len(names) or len(classes) > IGNORED:
        raise ValueError(
            f"{table} must have 2 … {IGNORED} names, no two alike; it has {', '.join(names[:10]) or 'none'}"
        )
    colored = any(row.colored for row in rows)
    codes = [i if row.code is None else row.code for i, row in enumerate(rows)]
    ignored = [code for i, code in enumerate(codes) if i not in classes]
    own = [codes[i] for i in classes]
    if options.mask_values is not None:
        if colored or len(options.mask_values) != len(own):
            has = "colors" if colored else f"{len(own)} classes"
            raise ValueError(
                f"mask_values are {len(options.mask_values)}, and {table} names {has}: give one for each, "
                "and no colors"
            )
        own, ignored = list(options.mask_values), []
    if not colored:
        ignored += [value for value in options.ignored_values if value not in own and value not in ignored]
    twice = sorted({_describe([code], colored) for code in own if [*own, *ignored].count(code) > 1})
    raise_problems(table, [f"two names have {each}: give each its own" for each in twice])
    return MaskClasses(table, [names[i] for i in classes], tuple(own), tuple(ignored), colored)


def is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")


def find_table(folders: Iterable[Path]) -> Path | None:
    """The table of classes in the first folder that has one."""
    paths = (folder / name for folder in folders for name in _TABLES)
    return next((path for path in paths if path.is_file()), None)


def missing_table(path: Path, masks: Sequence[Path]) -> str:
    """What to write in a table of classes, by what some masks hold."""
    counts: Counter[int] = Counter()
    colored = False
    for mask in masks:
        pixels = read_mask(mask)
        colored = colored or pixels.ndim == 3
        values, numbers = np.unique(_pack(pixels), return_counts=True)
        enough = numbers > (0.05 * pixels.size if is_jpeg(mask) else 0)  # JPEG adds others
        counts.update(values[enough].tolist())
    found = sorted(counts)
    text = f"{path} does not exist: write the name of a class on each line"
    held = f"{_describe(found, colored, 20)}, which {count_of(len(masks), 'mask')} looked at hold"
    if colored:
        return f"{text} and its color after it, as name r g b or name #rrggbb, for {held}"
    if {*found} - {IGNORED} == {*range(max(2, len({*found} - {IGNORED})))}:
        return f"{text}, the first for index 0: {held} ({IGNORED} is ignored)"
    return f"{text}, and what masks hold for each as --mask-values '{found[:20]}': {held}"


def read_mask(path: Path, colored: bool = False) -> NDArray[np.int32]:
    """What a mask file holds for each pixel: values or indices of a palette, H W, or colors, H W 3.

    Args:
        colored: give colors, whatever the file has.

    Raises:
        ValueError: it is unreadable.
    """
    with opened_image(path) as image:
        gif = image.format == "GIF" and image.mode == "P"  # writers of GIF renumber the colors
        plain = image.mode in ("1", "L", "P", "I", "F") or image.mode.startswith("I;16")
        pixels = np.array(image if plain and not colored and not gif else image.convert("RGB"))
        if gif and not colored and (pixels != pixels[..., :1]).any():
            pixels = np.array(image)
    if pixels.ndim == 3 and not colored and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f" and (pixels != pixels.round()).any():
        raise ValueError(f"{path} holds fractions: a mask has whole numbers")
    return pixels.astype(np.int32)


def _rows(path: Path) -> list[_Row]:
    """The classes in a table.

    Raises:
        ValueError: a line is not understood.
    """
    try:
        check_file(path)
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it as such") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give a file of classes") from None
    if path.suffix.lower() == ".csv":
        lines = list(_csv_lines(lines))
    parsed = list(map(_parse, lines))
    if all(row.code is None for row in parsed):
        if "" in lines:
            raise ValueError(
                f"line {1 + lines.index('')} of {path} is blank, and each line stands for an index: name it, "
                "or remove it if no mask holds its index"
            )
        return parsed
    coded = [row for row in parsed if row.code is not None]
    rest = [row.name for row in parsed if row.code is None and row.name and not row.name.startswith("#")]
    if rest or len({row.colored for row in coded}) > 1:
        raise ValueError(
            f"{path} has a color or value for some classes, and none for {first_few(rest)}: add it, as "
            "name r g b or name #rrggbb"
        )
    return coded


def _csv_lines(lines: Sequence[str]) -> Iterator[str]:
    """Lines of a CSV file as those of a text file are."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    header = [cell.lower() for cell in rows[0]] if rows else []
    places = {
        column: next((header.index(name) for name in names if name in header), None)
        for column, names in _COLUMNS.items()
    }
    if places["name"] is None:
        yield from map(",".join, rows)
        return
    columns = ["name", "r", "g", "b"] if places["r"] is not None else ["value", "name"]
    used = [place for column in columns if (place := places[column]) is not None]
    for row in rows[1:]:
        yield ",".join(row[place] for place in used if place < len(row))


def _parse(line: str) -> _Row:
    for pattern in _COLORED:
        if found := pattern.fullmatch(line):
            base = 16 if "#" in pattern.pattern else 10
            red, green, blue = (int(found[channel], base) for channel in "rgb")
            if max(red, green, blue) <= 255:
                return _Row(found["name"].strip(), (red << 16) + (green << 8) + blue, True)
    if found := _VALUED.fullmatch(line):
        return _Row(found["name"].strip(), int(found["value"]))
    return _Row(line)


def _nearest(pixels: NDArray[np.int32], known: NDArray[np.int64]) -> NDArray[np.int32]:
    """The values that JPEG has changed, as they were, where those of classes are far apart and nearly all are
    near one of them."""
    parts = _unpack(known) if pixels.ndim == 3 else known[:, None]
    values = pixels if pixels.ndim == 3 else pixels[..., None]
    apart = abs(parts[:, None] - parts).max(2) + 256 * np.eye(len(parts), dtype=int)
    distances = np.stack([abs(values - part).max(2) for part in parts])
    if apart.min() < _APART or (distances.min(0) <= _JPEG_NOISE).mean() < 0.9:
        return pixels
    nearest: NDArray[np.int32] = parts[distances.argmin(0)].astype(np.int32)
    return nearest if pixels.ndim == 3 else nearest[..., 0]


def _pack(pixels: NDArray[np.int32]) -> NDArray[np.int32]:
    """One number for each pixel, H W."""
    return pixels if pixels.ndim == 2 else (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]


def _unpack(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Colors, N 3."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1)


def _describe(codes: Iterable[int], colored: bool, count: int = 5) -> str:
    return first_few([f"#{int(code):06x}" if colored else str(int(code)) for code in codes], count=count)
