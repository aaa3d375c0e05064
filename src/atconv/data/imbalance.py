"""How often classes occur: said before training, and evened out by weights of classes or of images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atconv.engine.options import BelowOne
from atconv.io import count_of, first_few

__all__ = ["ClassWeightOptions", "Occurrences", "class_weights", "image_weights", "log_classes"]

logger = logging.getLogger(__name__)

ClassWeights = Literal["none", "inverse", "effective"]
Sampler = Literal["shuffle", "balanced", "repeat_factor"]


@dataclass(kw_only=True)
class ClassWeightOptions:
    """What a class weighs in the loss."""

    group: ClassVar[str] = "loss"
    common: ClassVar[tuple[str, ...]] = ()

    class_weights: ClassWeights = "none"
    """weight of each class: inverse to its images, boxes or pixels, or to how many are effective"""
    class_weight_beta: BelowOne = 0.999
    """β of effective: at 0 weights are equal, towards 1 they become those of inverse"""


# Times as much of the largest class as of the smallest, from which on it is said; background has most pixels.
_IMBALANCED = {"image": 3, "box": 3, "pixel": 20}
_RARE = 10  # images


@dataclass(frozen=True)
class Occurrences:
    """Which classes occur in which images of a split: pairs of an image and a class, each once."""

    classes: Sequence[str]
    count: int
    """images"""
    positions: NDArray[np.int64]
    """the image of each pair"""
    labels: NDArray[np.int64]
    """its class"""
    amounts: NDArray[np.int64] | None = None
    """how many boxes or pixels of the class are in the image; None: one class an image"""
    unit: str = "image"

    @classmethod
    def of_labels(cls, classes: Sequence[str], labels: ArrayLike) -> Occurrences:
        """Of the class index of every image, or of images × classes of 0 and 1."""
        array = np.asarray(labels, dtype=np.int64)
        rows, columns = np.nonzero(array) if array.ndim == 2 else (np.arange(len(array)), array)
        return cls(classes, len(array), rows, columns)

    @classmethod
    def of_counts(cls, classes: Sequence[str], counts: Iterable[Mapping[int, int]], unit: str) -> Occurrences:
        """Of how many boxes or pixels of each class are in each image."""
        images = list(counts)
        pairs = [(i, label, n) for i, image in enumerate(images) for label, n in image.items()]
        positions, labels, amounts = np.array(pairs, dtype=np.int64).reshape(-1, 3).T
        return cls(classes, len(images), positions, labels, amounts, unit)

    @property
    def images(self) -> NDArray[np.int64]:
        """In how many images each class occurs."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def absent(self) -> list[str]:
        """The classes that occur in no image."""
        return [name for name, images in zip(self.classes, self.images, strict=True) if not images]

    @property
    def totals(self) -> NDArray[np.int64]:
        """How many images, boxes or pixels each class has."""
        amounts = np.bincount(self.labels, self.amounts, minlength=len(self.classes))
        return amounts.astype(np.int64)


def class_weights(occurrences: Occurrences, kind: ClassWeights, beta: float) -> NDArray[np.float64] | None:
    """The weight of each class in the loss; their mean over all images, boxes or pixels is 1.

    Args:
        kind: inverse to how much of a class there is, n, or to its effective number, (1 − βⁿ) / (1 − β) (Cui
            et al., arXiv 1901.05555), where n pixels are counted in images of mean size.
        beta: β; at 0 all weights are equal, towards 1 they become inverse to n.
    """
    if kind == "none":
        return None
    totals = np.maximum(occurrences.totals, 1)
    if kind == "inverse":
        return totals.sum() / (len(totals) * totals)
    amounts = totals * (occurrences.count / totals.sum() if occurrences.unit == "pixel" else 1.0)
    weights = (1 - beta) / -np.expm1(amounts * (np.log(beta) if beta else -np.inf))
    return weights * (totals.sum() / (weights * totals).sum())


def image_weights(
    occurrences: Occurrences, sampler: Sampler, threshold: float | None = None
) -> NDArray[np.float64] | None:
    """How often each image is shown in an epoch, relative to the others; None: each once.

    Args:
        sampler: balanced shows each class equally often; repeat_factor shows an image by its rarest class,
            max(1, √(threshold / share of images that hold the class)) times (LVIS, arXiv 1908.03195). Images
            without a class are shown as often as those of the most frequent.
        threshold: of repeat_factor; default: 1 / number of classes.
    """
    if sampler == "shuffle":
        return None
    images = np.maximum(occurrences.images, 1)
    factors = 1.0 / images
    if sampler == "repeat_factor":
        at_least = threshold if threshold is not None else 1 / len(images)
        factors = np.maximum(1.0, np.sqrt(at_least * occurrences.count / images))
    weights = np.full(occurrences.count, factors[np.argmax(images)])
    np.maximum.at(weights, occurrences.positions, factors[occurrences.labels])
    return weights


def log_classes(splits: Mapping[str, Occurrences], advice: str) -> None:
    """Say how much of each class there is to train on, with advice where that differs much; warn of classes
    that are rare, or missing in a split."""
    train = splits["train"]
    totals, names = train.totals, list(train.classes)
    ranked = np.argsort(-totals, kind="stable")
    counted = count_of(len(names), "class", "classes")
    if (totals == totals[0]).all():
        logger.info("%s, %s each", counted, count_of(int(totals[0]), train.unit, _plural(train.unit)))
    else:
        shown = [_amount(train, int(i)) for i in ranked]
        if len(shown) > 10:
            shown[5:-5] = ["…"]
        imbalanced = totals[ranked[0]] >= _IMBALANCED[train.unit] * totals[ranked[-1]]
        listed = first_few(shown, count=len(shown))
        plural = _plural(train.unit)
        if imbalanced:
            logger.warning("training %s are imbalanced: %s. %s", plural, listed, advice)
        else:
            logger.info("%s, %s to train on: %s", counted, plural, listed)
    rare = [f"{names[i]} ({train.images[i]})" for i in ranked if 0 < train.images[i] < _RARE]
    if rare:
        logger.warning("in fewer than %d training images: %s", _RARE, first_few(rare))
    for split, occurrences in splits.items():
        if occurrences.absent:
            text = "in no image of the %s split: %s; its metrics do not tell how well they are found"
            logger.warning(text, split, first_few(occurrences.absent))


def _plural(unit: str) -> str:
    return "boxes" if unit == "box" else f"{unit}s"


def _amount(train: Occurrences, label: int) -> str:
    """How much of a class there is: pixels as a share."""
    name, total = train.classes[label], int(train.totals[label])
    return f"{100 * total / train.totals.sum():.2g} % {name}" if train.unit == "pixel" else f"{total} {name}"
