"""Which images a run trains on, picks its best epoch on, and is tested on.

DATA may come with splits (train/, val/, test/) or without; what is missing is held out, stratified by
class and seeded. No image is in two splits, not even as a copy under another name.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from atconv.data.arrays import SharedIntegers
from atconv.data.config import DataConfig, log_unused_fractions
from atconv.data.copies import copies_between, reject_only_copies
from atconv.data.folders import SPLITS, inner_folder
from atconv.data.formats import open_sources
from atconv.data.images import Mode, PrepareImage
from atconv.data.saved_split import read_split
from atconv.data.sources.base import ImageSource
from atconv.data.unreadable import FileReport, SkippedFile, check_files, name_skipped, save_skipped
from atconv.engine.rng import derive_seed
from atconv.engine.run import Run
from atconv.io import count_of, first_few, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "Split",
    "Splits",
    "load_splits",
    "make_splits",
    "open_splits",
    "readable_split",
    "stratified_holdout",
]

logger = logging.getLogger(__name__)


class Split:
    """Some of a source's images; a run was trained on so many of them."""

    def __init__(self, source: ImageSource, indices: ArrayLike, trained_on: int = 0) -> None:
        self.source, self.trained_on = source, trained_on
        self._indices = SharedIntegers(indices)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def indices(self) -> NDArray[np.int64]:
        return self._indices.array

    @property
    def labels(self) -> list[int]:
        """Class index of every image. Raises ValueError where an image may be of several."""
        if self.source.multi_label:
            raise ValueError(
                f"{self.source.origin} has several labels an image: one class each is needed here"
            )
        return self.source.labels[self.indices].tolist()

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many images are of each class."""
        return self.source.counts(self.indices)

    def item(self, position: int, prepare: PrepareImage) -> tuple[Image.Image, Any]:
        """What the first step of a transform makes of an image, and what a loss takes for it; see
        `ImageSource.prepared` and `target`."""
        index = int(self.indices[position])
        return self.source.prepared(index, prepare), self.source.target(index)

    def read(self, position: int, mode: Mode) -> Image.Image:
        return self.source.read(int(self.indices[position]), mode)

    def name(self, position: int) -> str:
        return self.source.name(int(self.indices[position]))

    @property
    def shards(self) -> NDArray[np.int32] | None:
        """As `ImageSource.shards`, of every image."""
        shards = self.source.shards
        return None if shards is None else shards[self.indices]


@dataclass
class Splits:
    """The splits of a run, by name: train, val, and test where DATA has one."""

    classes: list[str]
    by_name: dict[str, Split]
    message: str = ""
    """how they came about"""

    def __getitem__(self, name: str) -> Split:
        return self.by_name[name]

    @property
    def final(self) -> str:
        """The split that a finished model is evaluated on."""
        return "test" if "test" in self.by_name else "val"


def open_splits(
    config: DataConfig, seed: int, run: Run, accelerator: Accelerator, min_classes: int = 2
) -> Splits:
    """The splits of a run, made by its first process where there are none yet; the others load them.

    Raises:
        ValueError: as `make_splits` and `load_splits` do.
    """
    made = None
    if accelerator.is_main_process and not run.split.is_file():
        made = make_splits(config, run.path, seed, min_classes)
    accelerator.wait_for_everyone()
    splits = made or load_splits(config, run.path)
    logger.info(splits.message)
    return splits


def make_splits(config: DataConfig, run: Path, seed: int = 0, min_classes: int = 2) -> Splits:
    """Check the files of DATA, hold out what is missing, and save the split in the run's folder.

    Unreadable files go to skipped.csv there.

    Raises:
        ValueError: too many unreadable files, fewer than `min_classes`, an empty split.
    """
    sources = open_sources(config)
    for source in sources.values():
        for remark in source.remarks:
            logger.warning(remark)
    reports = {name: check_files(source, config.check_images) for name, source in sources.items()}
    unreadable = [SkippedFile(name, *each) for name, source in sources.items() for each in source.left_out]
    total = sum(map(len, sources.values())) + len(unreadable)
    unreadable += [
        SkippedFile(name, sources[name].name(i), reason)
        for name, report in reports.items()
        for i, reason in enumerate(report.reasons)
        if reason is not None
    ]
    copies = _drop_copies(sources, reports)
    save_skipped(run / "skipped.csv", unreadable, total, config.max_skipped, copies)
    usable = {
        name: [i for i, reason in enumerate(reports[name].reasons) if reason is None] for name in sources
    }
    for name, source in sources.items():
        reject_only_copies(name, source.origin, usable[name], copies)
    for line in _oddities(sources["train"], usable["train"], reports["train"]):
        logger.info(line)
    train = sources["train"]
    classes = [train.classes[label] for label in np.flatnonzero(train.counts(usable["train"]))]
    for name, source in sources.items():
        source.relabel(classes, usable[name])
    if len(classes) < (1 if train.multi_label else min_classes):
        inner = inner_folder(Path(config.data)) if Path(config.data).is_dir() else None
        flat = len(sources) > 1 and classes == [Path(config.data).resolve().name]
        raise ValueError(
            f"{config.data} has {count_of(len(classes), 'class', 'classes')}: classification needs two or "
            "more, a folder each or in a table of labels"
            + (f"; the folders are in {inner}: give that" if inner else "")
            + (f". Its splits, {', '.join(sources)}, have no folders of classes" if flat else "")
        )
    indices, message = _hold_out(usable, sources["train"], reports["train"], config, seed)
    splits = _with_sources(sources, indices, classes, message)
    names = {name: [split.name(i) for i in range(len(split))] for name, split in splits.by_name.items()}
    content: dict[str, Any] = {"classes": classes, "message": message, **names}
    digests = {name: report.hex_digests for name, report in reports.items() if any(report.digests)}
    if digests:
        content["digests"] = {
            name: [digests[name if name in sources else "train"][i] for i in split.indices]
            for name, split in splits.by_name.items()
        }
    write_json(run / "split.json", content)
    return splits


def load_splits(config: DataConfig, run: Path) -> Splits:
    """Open DATA again with the splits that `make_splits` saved.

    Raises:
        ValueError: images of the saved split are gone, or have another class than then.
    """
    saved = read_split(run / "split.json", "classes", "message")
    sources = open_sources(config)
    indices: dict[str, list[int]] = {}
    for name in (name for name in SPLITS if name in saved):
        source = sources.get(name, sources["train"])
        position = {source.name(i): i for i in range(len(source))}
        missing = [image for image in saved[name] if image not in position]
        if missing:
            raise ValueError(
                f"no longer in {config.data}: {count_of(len(missing), 'image')} of the run's split "
                f"({run / 'split.json'}), such as {missing[0]!r}"
            )
        indices[name] = [position[image] for image in saved[name]]
    for source in sources.values():
        of_it = [
            i for split, own in indices.items() if sources.get(split, sources["train"]) is source for i in own
        ]
        if len({*of_it}) < len(of_it):
            raise ValueError(f"{run / 'split.json'} is damaged: an image is in two splits")
        try:
            source.relabel(saved["classes"], of_it)
        except ValueError as error:
            raise ValueError(f"{error} ({run / 'split.json'})") from error
    if not sources["train"].counts(indices["train"]).all():
        raise ValueError(f"{run / 'split.json'} is damaged: it has classes without training images")
    return _with_sources(sources, indices, saved["classes"], saved["message"])


def readable_split(source: ImageSource) -> Split:
    """All images of a source but the unreadable ones, which are named as those without a label are.

    Raises:
        ValueError: none can be read.
    """
    reasons = check_files(source, "decode").reasons
    unreadable = [(source.name(i), reason) for i, reason in enumerate(reasons) if reason is not None]
    skipped = [SkippedFile("", *each) for each in [*source.left_out, *unreadable]]
    name_skipped(skipped)
    split = Split(source, [i for i, reason in enumerate(reasons) if reason is None])
    if not len(split):
        raise ValueError(f"none of {count_of(len(source), 'file')} is a readable image")
    return split


def _with_sources(
    sources: dict[str, ImageSource], indices: dict[str, list[int]], classes: list[str], message: str
) -> Splits:
    in_order = (name for name in SPLITS if name in indices)
    splits = {name: Split(sources.get(name, sources["train"]), indices[name]) for name in in_order}
    return Splits(classes, splits, message)


def _drop_copies(sources: dict[str, ImageSource], reports: dict[str, FileReport]) -> list[SkippedFile]:
    """Take out of a split what also lies, byte for byte, in a later one (test before val before train)."""
    keys = {
        name: [
            digest if reason is None else None
            for digest, reason in zip(report.digests, report.reasons, strict=True)
        ]
        for name, report in reports.items()
    }
    copies = []
    for split, i, later, j in copies_between(keys):
        reports[split].reasons[i] = reason = f"same image as {later}/{sources[later].name(j)}"
        copies.append(SkippedFile(split, sources[split].name(i), reason))
    return copies


def _oddities(train: ImageSource, indices: list[int], report: FileReport) -> list[str]:
    """What a person should know of the data before hours are spent on it."""
    counts = train.counts(indices)
    lines = []
    for count, what in ((0, "no images"), (1, "one image, which is never tested,")):
        names = [name for label, name in enumerate(train.classes) if counts[label] == count]
        if names:
            lines.append(f"{what} in {first_few(names)}")
    owner: dict[bytes, int] = {}
    twice = []
    for i in indices:
        digest = report.digests[i]
        if digest is not None and np.any(train.labels[owner.setdefault(digest, i)] != train.labels[i]):
            twice.append(f"{train.name(i)} is {train.name(owner[digest])}")
    if twice:
        verb = "lies" if len(twice) == 1 else "lie"
        lines.append(f"{count_of(len(twice), 'image')} {verb} in two classes: {first_few(twice)}")
    return lines


def _hold_out(
    indices: dict[str, list[int]], train: ImageSource, report: FileReport, config: DataConfig, seed: int
) -> tuple[dict[str, list[int]], str]:
    """Fill in missing splits from train; also says how the splits came about."""
    indices = dict(indices)
    missing = [("test", config.test_fraction)] if list(indices) == ["train"] else []
    missing += [("val", config.val_fraction)] if "val" not in indices else []
    reason = f"DATA {config.data} comes with splits of its own: {', '.join(indices)}"
    taken = {f"{split}_fraction" for split, _ in missing}
    log_unused_fractions(config, {"val_fraction", "test_fraction"} - taken, reason)
    for split, fraction in missing:
        indices["train"], indices[split] = stratified_holdout(
            indices["train"], train.strata.tolist(), report.digests, fraction, derive_seed(split, seed)
        )
        _return_lone_classes(train, indices["train"], indices[split], report.digests)
    for split, of_it in indices.items():
        if not of_it:
            raise ValueError(
                f"the {split} split of {config.data} has no images: it needs more, or smaller fractions"
            )
    counts = ", ".join(f"{len(indices[split])} {split}" for split in SPLITS if split in indices)
    message = f"{count_of(len(train.classes), 'class', 'classes')}, images: {counts}"
    if missing:
        names = " and ".join(split for split, _ in missing)
        message += f"; {names} held out of train, stratified, seed {seed}"
    return indices, message


def _return_lone_classes(
    train: ImageSource, kept: list[int], held: list[int], digests: Sequence[bytes | None]
) -> None:
    """Take back into training an image, and its copies, of each class that would have none there: of several
    labels an image only one is stratified by."""
    for label in np.flatnonzero((train.counts(kept) == 0) & (train.counts(held) > 0)):
        own = next(i for i in held if train.counts([i])[label])
        for i in [i for i in held if i == own or (digests[i] is not None and digests[i] == digests[own])]:
            held.remove(i)
            kept.append(i)
    if not held:  # of few images another can be spared
        counts, known = train.counts(kept), [d for d in digests if d is not None]
        spare = (i for i in kept if (counts - train.counts([i]))[counts > 0].all())
        held += list(islice((i for i in spare if known.count(digests[i] or b"") <= 1), 1))
        kept[:] = [i for i in kept if i not in held]
    kept.sort()


def stratified_holdout(
    indices: list[int], labels: Sequence[int], digests: Sequence[Hashable], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split indices into (kept, held out), class by class; copies of an image stay together.

    Every class with two images or more gives at least one and keeps at least one.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for i in indices:
        groups[digests[i] if digests[i] is not None else i].append(i)
    by_class: dict[int, list[list[int]]] = defaultdict(list)
    for group in groups.values():
        by_class[labels[group[0]]].append(group)
    held: set[int] = set()
    rng = np.random.default_rng(seed)
    for label in sorted(by_class):
        members = by_class[label]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        for position in rng.permutation(len(members))[:count]:
            held.update(members[position])
    return [i for i in indices if i not in held], [i for i in indices if i in held]
