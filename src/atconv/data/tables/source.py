"""Labels in a table, such as labels.csv next to images: the splits of such DATA, and their source."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atconv.data.arrays import SharedIntegers, SharedNames
from atconv.data.config import DataConfig
from atconv.data.folders import SPLIT_NAMES, SPLITS, split_of, splits_among, subfolders
from atconv.data.listing import scan
from atconv.data.other_formats import has_image
from atconv.data.sources.base import ImageSource
from atconv.data.tables.columns import NO, YES, Columns, choose_columns, fold_column, has_labels
from atconv.data.tables.files import TABLE_SUFFIXES, TableFile, read_table
from atconv.data.tables.image_finder import ImageFinder, Place
from atconv.data.tables.labels import Cells, flag_labels, number_labels
from atconv.io import count_of, first_few

__all__ = ["TABLE_OPTIONS", "TableSource", "label_tables", "open_tables"]

TABLE_OPTIONS = (
    "images", "image_column", "label_column", "label_columns", "label_separator", "split_column",
)  # fmt: skip
"""options of `DataConfig` that are for tables"""


class TableSource(ImageSource):
    """Images that a table names.

    Args:
        table: the file.
        rows: the row of each image in it.
        images: the name of each, and where it lies or why it was not found.
        classes, labels: as for `ImageSource`.
    """

    checkable = True

    def __init__(
        self,
        table: TableFile,
        rows: Sequence[int],
        images: Sequence[tuple[str, Place | str]],
        classes: Sequence[str],
        labels: ArrayLike,
    ) -> None:
        super().__init__(str(table.path), classes, labels)
        found = [place if isinstance(place, Place) else Place(Path(), name) for name, place in images]
        self._folders = list(dict.fromkeys(place.folder for place in found))
        numbers = {folder: number for number, folder in enumerate(self._folders)}
        self._folder_of = SharedIntegers([numbers[place.folder] for place in found])
        self._names = SharedNames(place.name for place in found)
        self._missing = SharedNames(place if isinstance(place, str) else "" for _, place in images)
        self._rows, self._table, self._first_row = SharedIntegers(rows), table.path, table.first_row

    def file(self, index: int) -> Path:
        if reason := self._missing[index]:
            row = self._rows.array[index] + self._first_row
            raise ValueError(f"{self._table}, row {row}: {reason}")
        return self._folders[self._folder_of.array[index]] / self._names[index]

    def name(self, index: int) -> str:
        return self._names[index]


def label_tables(data: Path) -> dict[str, list[Path]]:
    """The tables that DATA is or holds, by split, under "" where they are named after none; nothing where
    images lie in folders of classes."""
    if data.is_file():
        return {"": [data]} if data.suffix.lower() in TABLE_SUFFIXES else {}
    tables: dict[str, list[Path]] = defaultdict(list)
    for path in _tables_in(data):
        tables[_split_in_name(path) or ""].append(path)
    for folder, split in splits_among(subfolders(data)).items() if not tables else ():
        tables[split] += _tables_in(folder)
    if not any(tables.values()) or _has_class_folders(data):
        return {}
    return {split: paths for split, paths in tables.items() if paths and ("train" not in tables or split)}


def _tables_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    suffixes = TABLE_SUFFIXES - {".txt"}  # notes, where they lie next to images
    paths = [folder / entry.name for entry in scan(folder) if not entry.name.startswith(".")]
    return [path for path in paths if path.suffix.lower() in suffixes and path.is_file() and has_labels(path)]


def _split_in_name(path: Path) -> str | None:
    """The split that a table is named after, as train_labels.csv is."""
    return next(filter(None, map(split_of, re.split(r"[\W_]+", path.stem))), None)


def _has_class_folders(data: Path) -> bool:
    """Whether images lie in folders of classes, which a table next to them only describes."""
    for place in [data, *splits_among(subfolders(data))]:
        children = subfolders(place)
        splits = splits_among(children)
        folders = [f for f in children if f not in splits and "images" not in f.name.lower()]
        if sum(map(has_image, folders)) > 1:
            return True
    return False


def open_tables(config: DataConfig) -> dict[str, ImageSource]:
    """The images of each split of a table, or of several tables, or all there are.

    Raises:
        ValueError: columns are not known, labels are missing or contradict each other, or no image is found;
            files and rows are named.
    """
    if config.images is not None and not Path(config.images).is_dir():
        raise ValueError(f"the folder of images {config.images} does not exist")
    parts, remarks = [], []
    for split, path in _one_a_split(Path(config.data)).items():
        table = read_table(path)
        try:
            columns = choose_columns(table, config)
        except ValueError as error:
            if split not in ("val", "test"):
                raise
            remarks.append(f"not used, since it has no labels: {error}")
            continue
        remarks.append(f"{path}: {columns.describe()}")
        if table.guessed_encoding:
            remarks.append(
                f"{path} is not in UTF-8, and its encoding was guessed as {table.guessed_encoding}: where "
                "names look wrong, save it as UTF-8"
            )
        if columns.split is None and (fold := fold_column(table)):
            remarks.append(
                f"{path}: column {fold} is not used: for splits, give --split-column that says train or val"
            )
        by_split, others = ({}, []) if split else _rows_by_split(table, columns.split, config)
        if others:
            remarks.append(
                f"not used, rows of other splits in column {columns.split} of {path}: {first_few(others)}"
            )
        parts += [_Part(each, table, columns, rows) for each, rows in by_split.items()]
        parts += [] if by_split else [_Part(split, table, columns, range(len(table.column(columns.image))))]
    splits = [part.split or "train" for part in parts]
    if "train" not in splits:
        raise ValueError(f"{config.data} has no training split, only {', '.join(splits)}")
    classes, labels = _number(parts, config)
    sources: dict[str, ImageSource] = {
        split: part.open(classes, own, config.images)
        for split, part, own in zip(splits, parts, labels, strict=True)
    }
    if sources["train"].multi_label:
        remarks.append("an image may have several labels (--label-separator none: one each)")
    sources["train"].remarks[:0] = remarks
    return sources


def _one_a_split(data: Path) -> dict[str, Path]:
    tables = label_tables(data)
    for split, paths in tables.items():
        if len(paths) > 1:
            names = first_few([str(path.relative_to(data)) for path in paths])
            of = f" for the {split} split" if split else ""
            raise ValueError(f"{data} holds {len(paths)} tables{of}: {names}. Give one of them")
    return {split: path for split, [path] in tables.items()}


@dataclass(frozen=True)
class _Part:
    """The rows of a table that are of one split; "" is all there is, to be split."""

    split: str
    table: TableFile
    columns: Columns
    rows: Sequence[int]

    @property
    def cells(self) -> Cells:
        """The cell of labels of each row, or its cells of one a class."""
        content = [self.table.column(name) for name in self.columns.labels]
        own = [[column[i] for column in content] for i in self.rows]
        each = self.columns.one_each
        return [(self.table.row(i), c if each else c[0]) for i, c in zip(self.rows, own, strict=True)]

    def open(self, classes: Sequence[str], labels: NDArray[Any], images: str | None) -> TableSource:
        """The source of the split. Rows that repeat an image are left out.

        Raises:
            ValueError: none of its images is found, or rows contradict each other.
        """
        split = self.split or _split_in_name(self.table.path)
        finder = ImageFinder(Path(images) if images else self.table.path.parent, split)
        content = self.table.column(self.columns.image)
        names = [str(content[i]) for i in self.rows]
        places = list(map(finder.find, names))
        if not any(isinstance(place, Place) for place in places):
            first = (
                f"{self.table.row(self.rows[0])}: {places[0]}" if places else f"{self.table.path} has no rows"
            )
            raise ValueError(
                f"none of the images is found: {first}" + ("" if images else "; give --images FOLDER")
            )
        owners: dict[Place | str, int] = {}
        kept = [i for i, place in enumerate(places) if owners.setdefault(place, i) == i]
        for i, place in enumerate(places):
            if np.any(labels[owners[place]] != labels[i]):
                raise ValueError(
                    f"{self.table.row(self.rows[i])}: {names[i]} has another label than in row "
                    f"{self.rows[owners[place]] + self.table.first_row}. Remove one; several labels of an "
                    "image stand in one cell, as cat;dog"
                )
        rows = [self.rows[i] for i in kept]
        own = [(names[i], places[i]) for i in kept]
        source = TableSource(self.table, rows, own, classes, labels[kept])
        if len(kept) < len(places):
            source.remarks.append(f"{self.table.path} repeats {count_of(len(places) - len(kept), 'image')}")
        return source


def _rows_by_split(
    table: TableFile, column: str | None, config: DataConfig
) -> tuple[dict[str, list[int]], list[str]]:
    """Rows by the split that a column names, and what else it holds; none where it holds nothing else.

    Raises:
        ValueError: so does a column that was chosen.
    """
    cells = [] if column is None else table.column(column)
    flags: dict[str, str] = {}
    if column is not None and (flagged := split_of(re.sub(r"(?i)^is[\W_]*", "", column))):  # is_valid
        flags = dict.fromkeys(YES, flagged) | dict.fromkeys(NO, "train")
    rows: dict[str, list[int]] = defaultdict(list)
    for i, cell in enumerate(cells):
        rows[split_of(str(cell)) or flags.get(str(cell).lower()) or ""].append(i)
    unknown = rows.pop("", [])
    if unknown and not rows and config.split_column:
        accepted = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
        raise ValueError(
            f"{table.row(unknown[0])}: {cells[unknown[0]]!r} in column {column} is no split: {accepted} are"
        )
    others = Counter(repr(cells[i]) for i in unknown) if rows else Counter()
    named = [f"{cell} ({count_of(count, 'row')})" for cell, count in sorted(others.items())]
    return {split: rows[split] for split in SPLITS if split in rows}, named


def _number(parts: Sequence[_Part], config: DataConfig) -> tuple[list[str], list[NDArray[Any]]]:
    columns = parts[0].columns
    if columns.one_each:
        return columns.labels, [flag_labels(part.cells, columns.labels) for part in parts]
    cells = [part.cells for part in parts]
    return number_labels(cells, config.label_separator, guessed=config.label_column is None)
