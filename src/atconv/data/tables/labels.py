"""The cells of a table's label columns → classes: one for each image, or several."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atconv.data.tables.columns import NO, YES
from atconv.io import first_few

__all__ = ["Cells", "find_separator", "flag_labels", "number_labels"]

_MANY = 10  # classes from which more than one for every two images are no classes

Cells = Sequence[tuple[str, Any]]
"""of each image, the row for messages and its cell, or its cells"""


def number_labels(
    parts: Sequence[Cells], separator: str | None, guessed: bool
) -> tuple[list[str], list[NDArray[Any]]]:
    """The classes in a column of labels, and for each part of it the class index of each image, or images ×
    classes of 0 and 1 where an image may be of several.

    Args:
        separator: what separates labels in a cell, "none" where each holds one; None finds out.
        guessed: nobody chose the column: then it may hold measurements or names, which are no classes.

    Raises:
        ValueError: a label is missing, or they are numbers or names that are no classes.
    """
    separator = separator or find_separator([cell for part in parts for _, cell in part])
    if separator == "none":
        return _one_label(parts, guessed)
    names = [[_split(cell, separator) for _, cell in part] for part in parts]
    classes = _in_order({name for part in names for labels in part for name in labels})
    numbers = {name: number for number, name in enumerate(classes)}
    matrices = [np.zeros((len(part), len(classes)), dtype=np.uint8) for part in names]
    for matrix, part in zip(matrices, names, strict=True):
        for i, labels in enumerate(part):
            matrix[i, [numbers[name] for name in labels]] = 1
    return classes, matrices


def flag_labels(part: Cells, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Whether each image is of each class, from one column a class: images × classes of 0 and 1.

    Raises:
        ValueError: a cell holds something else.
    """
    for row, cells in part:
        for name, cell in zip(classes, cells, strict=True):
            if str(cell).lower() not in YES | NO:
                raise ValueError(
                    f"{row}: column {name} holds {cell!r}; a column for one class holds 0 or 1: "
                    "write one of them, or name the columns to use with --label-columns"
                )
    return np.array([[str(cell).lower() in YES for cell in cells] for _, cells in part], dtype=np.uint8)


def _one_label(parts: Sequence[Cells], guessed: bool) -> tuple[list[str], list[NDArray[Any]]]:
    cells = [(row, str(cell)) for part in parts for row, cell in part]
    empty = [row for row, cell in cells if not cell]
    if empty:
        raise ValueError(
            f"{first_few(empty, '; ')}: the label is empty. Write one, or remove the row; "
            "where images may have none, or several, give --label-separator"
        )
    numeric = all(re.fullmatch(r"-?\d+(\.\d*)?(e[-+]?\d+)?", cell.lower()) for _, cell in cells)
    for row, cell in cells if numeric else ():
        if float(cell) % 1:
            raise ValueError(
                f"{row}: the label is {cell}, and classes are expected, as whole numbers or names: choose "
                "another column with --label-column"
            )
    plain = {cell: re.sub(r"\.0*$", "", cell) if numeric else cell for _, cell in cells}
    classes = _in_order(set(plain.values()))
    if guessed and len(classes) >= _MANY and 2 * len(classes) > len(cells):
        raise ValueError(
            f"{cells[0][0]} and below: {len(classes)} different labels in {len(cells)} rows, such as "
            f"{first_few(classes)}. Are they measurements or names? Choose this column, or another, "
            "with --label-column"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [
        np.array([numbers[plain[str(cell)]] for _, cell in part], dtype=np.int64) for part in parts
    ]


def _in_order(names: set[str]) -> list[str]:
    """Names in alphabetical order, whole numbers by their value."""
    whole = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if whole else None)


def find_separator(cells: Sequence[Any]) -> str:
    """What separates the labels in cells: "none" where each holds one, "list" where they are lists."""
    texts = {cell for cell in cells if isinstance(cell, str) and cell}
    bracketed = bool(texts) and all(text.startswith("[") and text.endswith("]") for text in texts)
    if bracketed or any(isinstance(cell, list) for cell in cells):
        return "list"
    for separator in (";", "|", ","):
        used = {text for text in texts if separator in text}
        names = {name for text in used for name in _split(text, separator)}
        # A name may hold a comma itself: such a part stands alone, too, or there are fewer of them.
        if used and separator != ",":
            parts = sum(len(set(_split(text, separator))) for text in used)
            if used < texts or len(names) < parts:
                return separator
        elif used and (names & texts or len(names | (texts - used)) < len(texts)):
            return separator
    return "none"


def _split(cell: Any, separator: str) -> list[str]:
    """The labels in a cell."""
    if isinstance(cell, str) and separator == "list":
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            cell = [name.strip(" '\"") for name in cell.strip("[] ").split(",")]
    parts = cell.split(separator) if isinstance(cell, str) else cell if isinstance(cell, list) else [cell]
    return [name for part in parts if (name := str(part).strip())]
