"""What every source of labeled images is: images by index, for runs that split, shuffle and resume."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from atconv.data.images import Mode, PrepareImage, opened_image, read_image
from atconv.data.labels import make_labels
from atconv.io import first_few, read_bytes

__all__ = ["ImageSource", "check_train"]


class ImageSource:
    """Labeled images by index: a class index for each, or a matrix images × classes of 0 and 1."""

    checkable: bool = False
    """images are encoded files that may be unreadable"""

    def __init__(self, origin: str, classes: Sequence[str], labels: ArrayLike) -> None:
        self.origin = origin
        self._labels = make_labels(classes, labels)
        self.remarks: list[str] = []
        """what a person should know of it"""
        self.left_out: list[tuple[str, str]] = []
        """names of images that are not in it as they have no label that can be read, and why"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self._labels.classes

    @property
    def labels(self) -> NDArray[Any]:
        """Class index of every image, or images × classes of 0 and 1 where an image may be of several."""
        return self._labels.array

    @property
    def multi_label(self) -> bool:
        """Whether an image may be of several classes."""
        return self._labels.multi_label

    @property
    def strata(self) -> NDArray[np.int64]:
        """One class for every image, of which splits hold equal shares."""
        return self._labels.strata

    @property
    def shards(self) -> NDArray[np.int32] | None:
        """The number of the file that each image lies in, where files hold many one after the other."""
        return None

    def target(self, index: int) -> Any:
        """What a loss takes for an image: its class index, or 0 and 1 for each class."""
        return self._labels.target(index)

    def counts(self, indices: ArrayLike) -> NDArray[np.int64]:
        """How many of some images are of each class."""
        return self._labels.counts(indices)

    def to_multi_label(self) -> None:
        """Let images be of several classes, for a model that was trained so."""
        self._labels = self._labels.to_multi()

    def relabel(self, classes: Sequence[str], used: Sequence[int] | None = None) -> None:
        """Number the classes as `classes` does, matched by name.

        Args:
            classes: their names from now on.
            used: positions of the images that must be of these classes, default all. Others are labeled −1.

        Raises:
            ValueError: images are of other classes.
        """
        renumbered, unknown = self._labels.renumber(classes, used)
        if unknown:
            raise ValueError(self._unknown_classes(unknown))
        self._labels = renumbered

    def _unknown_classes(self, names: Sequence[str]) -> str:
        return (
            f"{self.origin} has classes that are not among the run's classes: {first_few(names)}. Leave them "
            "out, or train on images of them too"
        )

    def file(self, index: int) -> Path | BinaryIO:
        """The file of an image, for sources that are `checkable`."""
        raise NotImplementedError

    def encoded(self, index: int) -> bytes:
        """The bytes of its file."""
        file = self.file(index)
        return read_bytes(file) if isinstance(file, Path) else file.read()

    def read(self, index: int, mode: Mode) -> Image.Image:
        """The image, upright, as RGB or gray; sources that are not `checkable` write this. Raises ValueError
        where it is unreadable."""
        return read_image(self.file(index), mode)

    def prepared(self, index: int, prepare: PrepareImage) -> Image.Image:
        """What the first step of a transform makes of an image, which it gets before a file is decoded."""
        if not self.checkable:
            return prepare(self.read(index, prepare.mode))
        with opened_image(self.file(index)) as image:
            return prepare(image)

    def name(self, index: int) -> str:
        """A name that stays the same from run to run."""
        return str(index)


def check_train(path: Path, splits: Collection[str]) -> None:
    """Raise ValueError where there are splits, but none to train on."""
    if "train" not in splits:
        only = next(iter(splits))
        raise ValueError(
            f"{path} has a validation or test folder but no train folder; to evaluate on all images of one, "
            f"give {path / only}"
        )
