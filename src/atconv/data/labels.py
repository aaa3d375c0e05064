"""Which classes the images of a source are of: one each, or any number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atconv.data.arrays import SharedIntegers

__all__ = ["Labels", "MultiLabels", "make_labels"]


class Labels:
    """The class of each image by position, in memory that workers share; −1 is an image that is not used."""

    multi_label = False

    def __init__(self, classes: Sequence[str], values: ArrayLike) -> None:
        self.classes = list(classes)
        self._values = SharedIntegers(values, np.uint8 if self.multi_label else np.int64)

    @property
    def array(self) -> NDArray[Any]:
        """The class index of every image, or images × classes of 0 and 1."""
        return self._values.array

    @property
    def strata(self) -> NDArray[np.int64]:
        """One class for every image, of which splits hold equal shares."""
        return self.array

    def target(self, index: int) -> Any:
        """What a loss takes for an image."""
        return int(self.array[index])

    def counts(self, indices: ArrayLike) -> NDArray[np.int64]:
        """How many of some images are of each class."""
        return np.bincount(self.array[np.asarray(indices, dtype=np.int64)], minlength=len(self.classes))

    def renumber(
        self, classes: Sequence[str], used: Sequence[int] | None = None
    ) -> tuple[Labels, Sequence[str]]:
        """The same by other classes, matched by name; and the names of classes that are not among them,
        where images at the positions `used` (default: all) are of such."""
        numbers = {name: number for number, name in enumerate(classes)}
        renumbered = np.array([*(numbers.get(name, -1) for name in self.classes), -1])[self.array]
        own = self.array if used is None else self.array[used]
        after = renumbered if used is None else renumbered[used]
        unknown = sorted(self.classes[label] for label in np.unique(own[after < 0]))
        return Labels(classes, renumbered), unknown

    def to_multi(self) -> MultiLabels:
        """The same, for a model of several labels an image."""
        return MultiLabels(self.classes, self.array[:, None] == np.arange(len(self.classes)))


class MultiLabels(Labels):
    """Each image is of any number of classes, also of none."""

    multi_label = True

    @property
    def strata(self) -> NDArray[np.int64]:
        """The rarest class of each image, one more for images of no class; those of fewer than three images,
        one for each split, are counted to the most frequent."""
        frequency = self.array.sum(0, dtype=np.int64)
        cost = np.where(self.array > 0, frequency, len(self.array) + 1)
        strata = np.where(self.array.any(1), cost.argmin(1), len(self.classes))
        sizes = np.bincount(strata)
        return np.where(sizes[strata] < 3, sizes.argmax(), strata)

    def target(self, index: int) -> NDArray[np.float32]:
        return self.array[index].astype(np.float32)

    def counts(self, indices: ArrayLike) -> NDArray[np.int64]:
        return self.array[np.asarray(indices, dtype=np.int64)].sum(0, dtype=np.int64)

    def renumber(
        self, classes: Sequence[str], used: Sequence[int] | None = None
    ) -> tuple[Labels, Sequence[str]]:
        numbers = {name: number for number, name in enumerate(self.classes)}
        renumbered = np.zeros((len(self.array), len(classes)), dtype=np.uint8)
        for column, name in enumerate(classes):
            if name in numbers:
                renumbered[:, column] = self.array[:, numbers[name]]
        taken = np.flatnonzero(self.counts(range(len(self.array)) if used is None else used))
        return MultiLabels(classes, renumbered), sorted({self.classes[i] for i in taken} - set(classes))

    def to_multi(self) -> MultiLabels:
        return self


def make_labels(classes: Sequence[str], values: ArrayLike) -> Labels:
    """Labels from class indices, or from a matrix images × classes of 0 and 1."""
    values = np.asarray(values)
    return (MultiLabels if values.ndim == 2 else Labels)(classes, values)
