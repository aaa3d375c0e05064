"""Which annotated images a run trains on, picks its best epoch on, and is tested on.

As in classification, no image is in two splits, not even as a copy under another name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from atconv.data.annotated import AnnotatedSplit
from atconv.data.copies import copies_between, reject_only_copies
from atconv.data.folders import SPLITS
from atconv.data.saved_split import read_split
from atconv.data.splits import stratified_holdout
from atconv.data.unreadable import SkippedFile, save_skipped
from atconv.engine.rng import derive_seed
from atconv.io import write_json

__all__ = ["drop_copies", "read_saved_split", "save_or_check_split", "train_val_test_split"]

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=AnnotatedSplit)


def drop_copies(splits: Mapping[str, S], limit: float, path: Path) -> dict[str, S]:
    """The splits without images that also lie in a later one (test before val before train). These and the
    unreadable ones are listed in a file; see `save_skipped`. A test split with the images of val is left out.

    Raises:
        TooManyUnreadable: more than a share of all files are unreadable.
        ValueError: a split has no images but such copies.
    """
    keys = {name: _keys(split) for name, split in splits.items()}
    if "val" in keys and "test" in keys and {*keys["val"]} == {*keys["test"]}:
        logger.warning(
            "val and test of %s have the same images: they are val, and no test", splits["val"].where
        )
        splits = {name: split for name, split in splits.items() if name != "test"}
    unreadable = [SkippedFile(name, *row) for name, split in splits.items() for row in split.skipped]
    copies, dropped = [], set()
    for name, i, later, j in copies_between({name: keys[name] for name in splits}):
        reason = f"same image as {later}/{splits[later].name(j)}"
        copies.append(SkippedFile(name, splits[name].name(i), reason))
        dropped.add((name, i))
    save_skipped(path, unreadable, sum(map(len, splits.values())) + len(unreadable), limit, copies)
    kept = {}
    for name, split in splits.items():
        positions = [i for i in range(len(split)) if (name, i) not in dropped]
        reject_only_copies(name, split.where, positions, copies)
        kept[name] = split if len(positions) == len(split) else split.take(positions)
    return kept


def _keys(split: AnnotatedSplit) -> Sequence[str]:
    """What images are known by: their bytes, or where these were not looked at, where they lie."""
    digests = list(split.digests) or [""] * len(split)
    return [digest or str(split.path(i)) for i, digest in enumerate(digests)]


def train_val_test_split(splits: Mapping[str, S], fraction: float, seed: int) -> dict[str, S]:
    """The splits of DATA, with a validation split: where there is none, some training images, chosen by the
    seed, of those with and of those without objects. Copies of an image stay together.

    Raises:
        ValueError: there is no training split, or it has only one image.
    """
    if "train" not in splits:
        raise ValueError(f"there is no training split, only {', '.join(splits)}: give one named train")
    if "val" in splits:
        return dict(splits)
    everything = splits["train"]
    empty = [int(not everything.has_objects(i)) for i in range(len(everything))]
    train, val = stratified_holdout(
        list(range(len(everything))), empty, _keys(everything), fraction, derive_seed("split", seed)
    )
    if not val:
        copies = ", of which the others are copies," if len(everything) > 1 else ""
        raise ValueError(
            f"one training image{copies} cannot be split into training and validation: give more"
        )
    return {**splits, "train": everything.take(train), "val": everything.take(val)}


def read_saved_split(path: Path, splits: Mapping[str, S]) -> dict[str, S]:
    """The images of each split that RUN/split.json lists, which the main process has checked."""
    saved = read_split(path)
    listed = {}
    for name in (name for name in SPLITS if name in saved):
        opened = splits[name if name in splits else "train"]
        positions = {image: position for position, image in enumerate(opened.names)}
        listed[name] = opened.take([positions[image] for image in saved[name]])
    return listed


def save_or_check_split(path: Path, splits: Mapping[str, AnnotatedSplit]) -> None:
    """Write the images of each split to RUN/split.json, or compare them with what the file says.

    Raises:
        ValueError: images or annotations differ from those that the run started with, or the file is damaged.
    """
    content: dict[str, Any] = {name: split.names for name, split in splits.items()}
    content["annotations"] = {name: split.digest for name, split in splits.items()}
    if not path.is_file():
        digests = {name: list(split.digests) for name, split in splits.items()}
        write_json(path, {**content, "digests": digests})
        return
    saved = read_split(path, "annotations")
    if {name: value for name, value in saved.items() if name != "digests"} != content:
        raise ValueError(
            f"the images or annotations are not those that {path.parent} started with ({path}): put them "
            "back, or start a new run"
        )
