"""Which images of DATA a run knows: DATA may be a copy, or a part, of what the run was trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atconv.data.folders import SPLITS
from atconv.data.saved_split import read_split
from atconv.data.sources.base import ImageSource
from atconv.data.splits import Split
from atconv.data.unreadable import check_files
from atconv.engine.run import Run
from atconv.io import count_of, first_few

__all__ = ["RunImages", "is_own_data", "known_splits", "log_trained_on", "with_all"]

logger = logging.getLogger(__name__)


def is_own_data(config: Any, data: str | None) -> bool:
    """Whether DATA is what a run was configured with; None stands for that."""
    if config is None:
        return False
    own = config.data
    return data in (None, own) or (Path(data).exists() and Path(data).resolve() == Path(own).resolve())


class RunImages:
    """The images in a run's split.json. They are known by what their files hold, whatever they are called; by
    their names where the run did not check files.

    Raises:
        ValueError: split.json is damaged.
    """

    def __init__(self, run: Run) -> None:
        saved = read_split(run.split) if run.split.is_file() else {}
        digests = saved.get("digests", {})
        self._images: dict[str, list[tuple[str, str]]] = {}
        for name in (name for name in SPLITS if name in saved):
            names = saved[name]
            self._images[name] = list(zip(names, digests.get(name, [""] * len(names)), strict=True))
        self._splits: dict[str, str] = {}
        for split, images in self._images.items():
            for name, digest in images:
                # A digest in two splits stands for one image, first in train; a name, for two images.
                known = self._splits.setdefault(digest or name, split)
                if known != split and not digest:
                    self._splits[name] = ""

    def count_trained(self, names: Sequence[str], digests: Sequence[str]) -> int:
        """How many images the run was trained on, of names and digests of their files, "" where unknown."""
        return sum(self._split_of(*image) == "train" for image in _pairs(names, digests))

    def log_namesakes(self, origin: object, names: Sequence[str], digests: Sequence[str]) -> None:
        """Warn of images whose files are not known, but are called as training images are, but for suffixes:
        they may show the same, converted."""
        trained = {_stem(name) for name, _ in self._images.get("train", ())} - {""}
        alike = [
            name
            for name, digest in _pairs(names, digests)
            if _stem(name) in trained and not self._split_of(name, digest)
        ]
        if alike:
            logger.warning(
                "%d of %s in %s are other files than the run's training images, of the same names: %s. If "
                "they show the same, they were trained on: expect lower metrics on new images",
                *(len(alike), count_of(len(names), "image"), origin, first_few(alike)),
            )

    def positions(self, names: Sequence[str], digests: Sequence[str]) -> dict[str, list[int]] | None:
        """Where the images of each split stand, in the run's order; None where there are others too."""
        images = _pairs(names, digests)
        if not all(self._split_of(*image) for image in images):
            return None
        places: dict[object, int] = {}
        for i, (name, digest) in enumerate(images):
            for key in ((name, digest), digest, name):
                places.setdefault(key, i)
        found = {
            split: [places.get(image, places.get(image[1] or image[0], -1)) for image in of_split]
            for split, of_split in self._images.items()
        }
        return {split: [i for i in of_split if i >= 0] for split, of_split in found.items()}

    def _split_of(self, name: str, digest: str) -> str:
        return self._splits.get(digest) or self._splits.get(name, "")


def known_splits(run: Run, source: ImageSource) -> dict[str, Split]:
    """A source that came without splits: those of the run where it knows all readable images; else "all",
    which says how many of them the run was trained on."""
    everything = {"all": Split(source, range(len(source)))}
    if not source.checkable or not run.split.is_file():
        return everything
    images = RunImages(run)
    report = check_files(source, "header")
    usable = [i for i, reason in enumerate(report.reasons) if reason is None]
    names, digests = [source.name(i) for i in usable], [report.hex_digests[i] for i in usable]
    everything["all"].trained_on = images.count_trained(names, digests)
    images.log_namesakes(source.origin, names, digests)
    positions = images.positions(names, digests)
    if positions is None or not usable:
        return everything
    splits = {name: Split(source, [usable[i] for i in own]) for name, own in positions.items() if own}
    return with_all(splits)


def with_all(splits: dict[str, Split]) -> dict[str, Split]:
    """A run's splits, and all of them together where they come from one source."""
    if "train" in splits:
        splits["train"].trained_on = len(splits["train"])
    parts = list(splits.values())
    if any(part.source is not parts[0].source for part in parts):
        return splits
    indices = np.sort(np.concatenate([part.indices for part in parts]))
    return splits | {"all": Split(parts[0].source, indices, sum(part.trained_on for part in parts))}


def log_trained_on(data: str, trained_on: int, count: int) -> None:
    """Warn where a model is evaluated on images that it was trained on."""
    if trained_on:
        logger.warning(
            "%d of %s in %s were trained on: expect lower metrics on new images",
            trained_on,
            count_of(count, "image"),
            data,
        )


def _stem(name: str) -> str:
    """A file's name without its suffix; "" where it has none, as names that are numbers."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix else ""


def _pairs(names: Sequence[str], digests: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(names, digests, strict=True))
