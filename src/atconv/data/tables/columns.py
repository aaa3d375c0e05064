"""What the columns of a table hold: as options say, else by their usual names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atconv.data.config import DataConfig
from atconv.data.images import image_suffixes
from atconv.data.tables.files import TableFile, read_table
from atconv.io import first_few

__all__ = ["LABEL_NAMES", "NO", "YES", "Columns", "choose_columns", "fold_column", "has_labels"]

YES, NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no", ""}
_UNKNOWN = {"-1", "-1.0", "?", "u", "nan", "na", "n/a", "null", "none"}
_IMAGE = (
    "image", "images", "imagepath", "imagefile", "imagefilename", "imagename", "imageid", "imageindex", "img",
    "imgpath", "imgname", "imgid", "file", "files", "filename", "filenames", "filepath", "filepaths", "fname",
    "path", "paths", "relativepath", "picture", "photo", "id",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "classes", "classname", "labelname", "category", "categories",
    "categoryname", "target", "targets", "tag", "tags", "species", "breed", "diagnosis", "findinglabels",
    "classid", "labelid", "categoryid", "y",
)  # fmt: skip
_SPLIT = (
    "split", "splits", "subset", "set", "dataset", "partition", "isvalid", "isval", "isvalidation", "istest",
)  # fmt: skip
_FOLD = ("fold", "folds", "kfold")


class Columns(NamedTuple):
    """What the columns of a table are."""

    image: str
    labels: list[str]
    """one that holds labels, or one for each class"""
    one_each: bool
    """each of them is a class"""
    split: str | None

    def describe(self) -> str:
        labels = f"labels from {first_few(self.labels)}" + (", one a class" if self.one_each else "")
        return f"images from column {self.image}, {labels}" + (
            f", splits from {self.split}" if self.split else ""
        )


def choose_columns(table: TableFile, config: DataConfig) -> Columns:
    """Which columns hold images, labels and splits.

    Raises:
        ValueError: there is no such column, or none of a usual name; the message lists them.
    """
    for name in filter(
        None, [config.image_column, config.label_column, config.split_column, *config.label_columns]
    ):
        if name not in table.columns:
            advice = (
                f"; several are given as [{name}]" if "," in name and name in config.label_columns else ""
            )
            raise ValueError(f"{table.path} has no column {name!r}; it has {_listed(table.columns)}{advice}")
    if config.label_column and config.label_columns:
        raise ValueError("give --label-column for one column, or --label-columns for one a class, not both")
    split = config.split_column or _guess(table, _SPLIT)
    image = config.image_column or _guess_image(table)
    if image is None:
        raise ValueError(
            f"no column of {table.path} is known to hold images: give --image-column, one of "
            f"{_listed(table.columns)}"
        )
    if config.label_columns:
        return Columns(image, list(config.label_columns), True, split)
    if config.label_column is None and _has_boxes(table):
        raise ValueError(
            f"{table.path} holds boxes: convert it to COCO's format for `atconv detect train`, or give "
            "--label-column to classify whole images"
        )
    others = [name for name in table.columns if name and name not in (image, split)]
    label = config.label_column or _guess(table, LABEL_NAMES, (image, split))
    if label is None and len(others) == 1:
        [label] = others
    if label is not None:
        return Columns(image, [label], False, split)
    classes = _class_columns(table, others)
    if len(classes) > 1:
        return Columns(image, classes, True, split)
    raise ValueError(
        f"no column of {table.path} is known to hold labels: give --label-column, or --label-columns with "
        f"one for each class, of {_listed(others)}"
    )


def fold_column(table: TableFile) -> str | None:
    """A column of folds of cross-validation, which are not used."""
    return _guess(table, _FOLD)


def has_labels(path: Path) -> bool:
    """Whether a file is a table that says which image is of which class, as far as its first rows tell."""
    try:
        table = read_table(path, head=True)
        image = _guess_image(table)
        if image is None or _has_boxes(table):
            return False
        others = [name for name in table.columns if name != image]
        return _guess(table, LABEL_NAMES) is not None or len(_class_columns(table, others)) > 1
    except ModuleNotFoundError:
        return True  # Parquet: opening it says what is missing
    except ValueError:
        return not os.access(path, os.R_OK)  # opening it says so


def _guess(table: TableFile, usual: Sequence[str], taken: Iterable[str | None] = ()) -> str | None:
    """The column of the first usual name."""
    plain = {re.sub(r"[\W_]", "", name.lower()): name for name in table.columns if name not in set(taken)}
    return next((plain[name] for name in usual if name in plain), None)


def _guess_image(table: TableFile) -> str | None:
    """The column of images; of tables without a header the one whose first cell is one."""
    known = _guess(table, _IMAGE)
    if known or table.first_row > 1:
        return known
    firsts = {name: str(table.column(name)[0]) for name in table.columns}
    return next((n for n, cell in firsts.items() if Path(cell).suffix.lower() in image_suffixes()), None)


def _has_boxes(table: TableFile) -> bool:
    return {"xmin", "ymin", "xmax", "ymax"} <= {name.lower() for name in table.columns}


def _class_columns(table: TableFile, names: Sequence[str]) -> list[str]:
    """Columns that hold 0 and 1 alone, or what stands for an unknown too: its row is named later."""

    def is_one(name: str) -> bool:
        values: set[Any] = {str(cell).lower() for cell in table.column(name)}
        return bool(name) and values <= YES | NO | _UNKNOWN and bool(values & (YES | NO) - {""})

    return list(filter(is_one, names))


def _listed(names: Sequence[str]) -> str:
    return first_few([repr(name) for name in names], count=20)
