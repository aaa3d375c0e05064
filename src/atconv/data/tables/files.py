"""Tables as people have them: CSV and its relatives in any usual encoding, and Parquet."""

from __future__ import annotations

import codecs
import csv
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atconv.data.images import image_suffixes
from atconv.data.listing import scan
from atconv.extras import name_missing_extra
from atconv.io import check_file, first_few

__all__ = ["TABLE_SUFFIXES", "TableFile", "read_table", "why_unreadable"]

TABLE_SUFFIXES = {".csv", ".tsv", ".txt", ".parquet", ".pq"}
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_HEAD = 1 << 16  # bytes that show what a table is
_SNIFFED = 50  # lines that show its separator


class TableFile(ABC):
    """Rows of a file under named columns."""

    guessed_encoding: str | None = None
    """that of a text which does not tell"""

    def __init__(self, path: Path, columns: Sequence[str], first_row: int) -> None:
        self.path, self.columns, self.first_row = path, list(columns), first_row
        twice = [name for name, count in Counter(columns).items() if count > 1 and name]
        if twice:
            raise ValueError(f"{path} has two columns of one name: {first_few(twice)}")

    @abstractmethod
    def column(self, name: str) -> list[Any]:
        """The cells of a column: text without spaces around it, or lists; empty where there is nothing."""

    def row(self, index: int) -> str:
        """A row for messages, by the number that a spreadsheet shows."""
        return f"{self.path}, row {index + self.first_row}"


class _Text(TableFile):
    def __init__(self, path: Path, columns: Sequence[str], first_row: int, rows: list[list[str]]) -> None:
        super().__init__(path, columns, first_row)
        self._rows = rows

    def column(self, name: str) -> list[Any]:
        place = self.columns.index(name)
        return [row[place] for row in self._rows]


class _Parquet(TableFile):
    def __init__(self, path: Path) -> None:
        with name_missing_extra():
            import pyarrow as pa
            from pyarrow import parquet
        self._read, self._damage = parquet.read_table, (pa.ArrowException, OSError)
        try:
            schema = parquet.read_schema(path)
        except self._damage as error:
            raise ValueError(f"{path} cannot be read: {str(error)[:200]}") from error
        super().__init__(path, schema.names, 1)

    def column(self, name: str) -> list[Any]:
        try:
            cells = self._read(self.path, columns=[name]).column(0).to_pylist()
        except self._damage as error:
            raise ValueError(f"{self.path} cannot be read: {str(error)[:200]}") from error
        held = next((type(cell).__name__ for cell in cells if isinstance(cell, (bytes, dict))), None)
        if held is not None:
            raise ValueError(
                f"column {name} of {self.path} holds {held}, not text: tables name image files. Images "
                "inside Parquet files are read by the name hfds/FOLDER"
            )
        return [cell if isinstance(cell, list) else _text(cell) for cell in cells]


def _text(cell: Any) -> str:
    return "" if cell is None or cell != cell else str(cell).strip()  # NaN is not equal to itself


def why_unreadable(folder: Path) -> list[str]:
    """What is wrong with the tables in a folder that cannot be read."""
    reasons = []
    for entry in scan(folder):
        path = folder / entry.name
        if path.suffix.lower() in TABLE_SUFFIXES - {".txt"} and path.is_file():
            try:
                read_table(path)
            except ModuleNotFoundError:
                pass
            except ValueError as error:
                reasons.append(str(error))
    return reasons


def read_table(path: Path, head: bool = False) -> TableFile:
    """A table of any kind; with `head` its columns and first rows alone, of text files.

    Raises:
        ValueError: it cannot be read, or a row has more or fewer cells than the header.
        ModuleNotFoundError: Parquet needs a package that is not installed.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        return _Parquet(path)
    try:
        check_file(path)
        with path.open("rb") as file:
            content = file.read(_HEAD if head else -1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    text, guessed = _decode(content)
    lines = text.splitlines(keepends=True)
    if head and len(content) == _HEAD:
        lines = lines[:-1]  # it may be cut
    separator = ""
    if lines and (line := re.fullmatch(r'"?sep=(.)"?\s*', lines[0])):  # as Excel writes it
        separator, lines = line[1], lines[1:]
    separator = separator or _separator(lines[:_SNIFFED], path.suffix.lower())
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator) if any(row)]
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    if not rows:
        raise ValueError(f"{path} is empty")
    columns, first_row = rows[0], 2
    if any(Path(cell).suffix.lower() in image_suffixes() for cell in columns):  # an image, so no header
        columns, first_row = [f"column {i}" for i in range(1, len(columns) + 1)], 1
    else:
        rows = rows[1:]
    table = _Text(path, columns, first_row, _even(path, rows, len(columns), first_row))
    table.guessed_encoding = guessed
    return table


def _decode(content: bytes) -> tuple[str, str | None]:
    """The text, and its encoding where that was guessed."""
    for mark, encoding in _BOMS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, errors="replace"), None
    try:
        return content.decode("utf-8"), None
    except UnicodeDecodeError as error:
        if len(content) == _HEAD and error.start > _HEAD - 4:  # a character is cut
            return content[: error.start].decode("utf-8"), None
        # What Excel writes in western countries.
        return content.decode("cp1252", errors="replace"), "Windows-1252"


def _separator(lines: Sequence[str], suffix: str) -> str:
    """What cuts all lines into as many cells, more than one; else what cuts the first."""

    def score(separator: str) -> tuple[bool, int]:
        try:
            cells = [len(row) for row in csv.reader(lines, delimiter=separator) if any(row)]
        except csv.Error:
            return False, 0
        return len(set(cells)) == 1 and cells[0] > 1, cells[0] if cells else 0

    candidates = [",", ";", "\t", "|", *([" "] if suffix == ".txt" else [])]
    return max(candidates, key=score)


def _even(path: Path, rows: list[list[str]], width: int, first_row: int) -> list[list[str]]:
    """Rows without empty cells at the end that have no column."""
    for number, row in enumerate(rows, first_row):
        while len(row) > width and not row[-1]:
            row.pop()
        if len(row) != width:
            raise ValueError(
                f"{path}, row {number} has {len(row)} cells, and there are {width} columns: put quotes "
                "around cells that hold a separator"
            )
    return rows
