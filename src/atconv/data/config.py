"""Options about the data, the same for all tasks that read labeled images."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from atconv.engine.options import Fraction, Share

__all__ = ["DataConfig", "MaskOptions", "SplitOptions", "log_unused_fractions", "reject_options"]

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SplitOptions:
    """Options that data of any kind has."""

    group: ClassVar[str] = "data"
    common: ClassVar[tuple[str, ...]] = ("val_fraction",)

    val_fraction: Fraction = 0.1
    """share of training images held out where DATA has no val split"""
    check_images: Literal["decode", "header", "none"] = "decode"
    """how image files are checked before training: decode each, read its header, or not at all"""
    max_skipped: Share = 0.05
    """largest share of unreadable files that are left out; more stops the run"""


@dataclass(kw_only=True)
class DataConfig(SplitOptions):
    """Options that say which images there are and how they are divided into splits."""

    group: ClassVar[str] = "data"
    common: ClassVar[tuple[str, ...]] = ("label_column",)

    data: str = ""
    """image folder, table of labels, LMDB, WebDataset shards, timm dataset (torch/…, hfds/…) or digits"""
    images: str | None = None
    """folder of the images that a table names, where they do not lie next to it"""
    image_column: str | None = None
    """column of a table that names the images; default: by its name"""
    label_column: str | None = None
    """column of a table, or field of a shard, with the labels; default: by its name"""
    label_columns: tuple[str, ...] = ()
    """columns of a table that hold 0 or 1, one for each class; default: all of that kind"""
    label_separator: str | None = None
    """what separates several labels in a cell, none: each holds one; default: ; or | or , if that fits"""
    split_column: str | None = None
    """column of a table that names the split; default: by its name"""
    data_root: str | None = None
    """folder that a named timm dataset lies in"""
    train_split: str = "train"
    """training split of a named timm dataset"""
    val_split: str | None = None
    """validation split of a named timm dataset; default: held out from the training split"""
    test_split: str | None = None
    """test split of a named timm dataset, looked at once after training"""
    test_fraction: Fraction = 0.15
    """share of all images held out for the test where DATA is one flat folder or digits"""


@dataclass(kw_only=True)
class MaskOptions:
    """Options that say where masks lie and what they hold."""

    group: ClassVar[str] = "masks"
    common: ClassVar[tuple[str, ...]] = ("mask_values", "class_table")

    masks: str | None = None
    """folder of the masks in DATA, such as gtCoarse; default: found by its name or by what masks look like"""
    mask_names: str | None = None
    """how masks are named, with * for what is in the name of their image too, such as *_gt; default: found"""
    class_table: str | None = None
    """file of the classes, and of their colors or values; default: classes.txt, class_dict.csv or the like in
    DATA"""
    mask_values: tuple[int, ...] | None = None
    """what masks hold for each class, in the order of the table, such as [0, 255]; default: its index"""
    ignored_values: tuple[int, ...] = (255,)
    """what masks hold where pixels are left out, in training and in metrics"""

    def check_masks(self) -> None:
        """Raise ValueError where values are no values of masks."""
        for name in ("mask_values", "ignored_values"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values) or not set(values) <= set(range(256)):
                raise ValueError(f"{name} must be different numbers in 0 … 255, got {list(values)}")
        if self.mask_names is not None and self.mask_names.count("*") != 1:
            raise ValueError(
                f"mask_names must have one * for the name of an image, such as *_mask, got "
                f"{self.mask_names!r}"
            )
        both = sorted({*(self.mask_values or ())} & {*self.ignored_values} - {255})
        if both:
            raise ValueError(f"mask_values and ignored_values both have {both}: leave it out of one")


def reject_options(config: Any, names: Collection[str], reason: str) -> None:
    """Raise ValueError where an option that has no effect on this DATA is not at its default."""
    for line in _without_effect(config, names, reason):
        raise ValueError(f"{line}. Leave it out")


def log_unused_fractions(config: Any, names: Collection[str], reason: str) -> None:
    """Say which fractions have no effect on this DATA: recipes set them for DATA of any kind."""
    for line in _without_effect(config, names, reason):
        logger.info(line)


def _without_effect(config: Any, names: Collection[str], reason: str) -> Iterator[str]:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in names and value != field.default:
            yield f"--{field.name.replace('_', '-')} {value} has no effect: {reason}"
