"""Which pictures a run trains on, picks its best epoch on, and is tested on.

DATA may come with sides (train/, val/, test/) or without; what is missing is held out, stratified by
class and seeded. No picture is on two sides, not even as a copy under another name.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image
from rich.console import Console

from atconv.data.checking import FileReport, check_files
from atconv.data.config import DataConfig
from atconv.data.images import Mode
from atconv.data.sources import DigitsSource, FolderSource, ImageSource, LmdbSource, TimmSource
from atconv.engine.rng import derive_seed
from atconv.engine.run import Run, TooManyUnreadable
from atconv.io import write_json, write_rows

__all__ = [
    "SPLITS",
    "SPLIT_NAMES",
    "STREAM_PREFIXES",
    "Split",
    "Splits",
    "is_stream",
    "load_split",
    "make_split",
    "open_sources",
    "open_split",
]

SPLITS = ("train", "val", "test")
STREAM_PREFIXES = ("wds/", "tfds/", "hfids/")
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
_KINDS = "give an image folder, an LMDB file, a timm dataset name (torch/…, hfds/…, wds/…) or digits"


@dataclass
class Split:
    """Some of a source's pictures."""

    source: ImageSource
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> list[int]:
        return [self.source.labels[i] for i in self.indices]

    def item(self, position: int, mode: Mode) -> tuple[Image.Image, int]:
        return self.source.item(self.indices[position], mode)

    def read(self, position: int, mode: Mode) -> Image.Image:
        return self.source.read(self.indices[position], mode)

    def name(self, position: int) -> str:
        return self.source.name(self.indices[position])


@dataclass
class Splits:
    """The sides of a run. `test` is None where DATA has no test side."""

    train: Split
    val: Split
    test: Split | None
    classes: list[str]
    message: str = ""
    skipped: list[dict[str, str]] = field(default_factory=list)

    @property
    def sides(self) -> dict[str, Split]:
        """The sides there are, by name."""
        return {"train": self.train, "val": self.val} | ({"test": self.test} if self.test else {})


def is_stream(data: str) -> bool:
    return data.startswith(STREAM_PREFIXES)


def open_sources(config: DataConfig) -> dict[str, ImageSource]:
    """Open the sides that DATA comes with; a lone "train" is all there is, to be split.

    Raises:
        ValueError: DATA is none of the kinds this reads, or is empty; the message says what fits.
    """
    data = config.data
    path = Path(data)
    if data == "digits" and not path.exists():
        return {"train": DigitsSource()}
    if data.startswith(("torch/", "hfds/")) and not path.exists():
        splits = {"train": config.train_split, "val": config.val_split, "test": config.test_split}
        if data.startswith("torch/") and config.val_split is None and config.test_split is None:
            splits["test"] = "validation"  # what timm calls the test set of torchvision's datasets
        named = [split for split in splits.values() if split is not None]
        if len(set(named)) < len(named):
            raise ValueError(f"train_split, val_split and test_split must differ, got {', '.join(named)}")
        return {
            side: TimmSource(data, config.data_root, split)
            for side, split in splits.items()
            if split is not None
        }
    if path.is_file():
        return {"train": LmdbSource(path)}
    if not path.is_dir():
        raise ValueError(f"DATA {data!r} does not exist: {_KINDS}")
    return _open_folder(path)


def open_split(
    config: DataConfig,
    seed: int,
    run: Run,
    accelerator: Accelerator,
    console: Console,
    least_classes: int = 2,
) -> Splits:
    """The split of a run, made by its first process where there is none yet.

    Raises:
        ValueError: as `make_split` and `load_split` do.
    """
    if accelerator.is_main_process and not run.split.is_file():
        splits = make_split(config, console, run.path, seed, least_classes)
        if splits.skipped:
            skipped = run.path / "skipped.csv"
            console.print(f"left out {len(splits.skipped)} files, listed in {skipped}", soft_wrap=True)
    accelerator.wait_for_everyone()
    splits = load_split(config, run.path)
    console.print(splits.message, soft_wrap=True)
    return splits


def make_split(
    config: DataConfig, console: Console, run: Path, seed: int = 0, least_classes: int = 2
) -> Splits:
    """Check the files of DATA, hold out what is missing, and save the split in the run's folder.

    Unreadable files go to skipped.csv there.

    Raises:
        ValueError: too many unreadable files, fewer than `least_classes`, an empty side.
    """
    sources = open_sources(config)
    classes = sources["train"].classes
    reports = {side: check_files(source, config.check_images, console) for side, source in sources.items()}
    skipped = _skipped(sources, reports, config.max_skipped, run)
    skipped += _drop_copies(sources, reports)
    sides = {s: [i for i in range(len(sources[s])) if reports[s].reasons[i] is None] for s in sources}
    if len(classes) < least_classes:
        raise ValueError(
            f"{config.data} has {len(classes)} class: classification needs two or more, a folder each"
        )
    for line in _oddities(sources, sides, reports):
        console.print(line, soft_wrap=True)
    message = _hold_out(sides, sources, reports, config, seed)
    splits = _splits(sources, sides, classes, message)
    splits.skipped = skipped
    if skipped:
        write_rows(run / "skipped.csv", skipped)
    saved = {"classes": classes, "message": message, **{s: _names(sources, s, sides[s]) for s in sides}}
    write_json(run / "split.json", saved)
    return splits


def load_split(config: DataConfig, run: Path) -> Splits:
    """Open DATA again with the split that `make_split` saved.

    Raises:
        ValueError: pictures of the saved split are gone.
    """
    saved = json.loads((run / "split.json").read_text())
    sources = open_sources(config)
    sides: dict[str, list[int]] = {}
    for side in SPLITS:
        if side not in saved:
            continue
        source = sources.get(side, sources["train"])
        position = {source.name(i): i for i in range(len(source))}
        missing = [name for name in saved[side] if name not in position]
        if missing:
            raise ValueError(
                f"{len(missing)} pictures of the run's split are no longer in {config.data}: {missing[0]}"
            )
        sides[side] = [position[name] for name in saved[side]]
    return _splits(sources, sides, saved["classes"], saved["message"])


def _open_folder(path: Path) -> dict[str, ImageSource]:
    files = {
        side: _first_existing(path, [f"{name}.lmdb" for name in names]) for side, names in SPLIT_NAMES.items()
    }
    if files["train"]:
        lmdbs: dict[str, ImageSource] = {side: LmdbSource(file) for side, file in files.items() if file}
        return _same_classes(lmdbs)
    folders = {side: _first_existing(path, list(names)) for side, names in SPLIT_NAMES.items()}
    if folders["train"] and any(child.is_dir() for child in folders["train"].iterdir()):
        train = FolderSource(folders["train"])
        return {
            side: train if side == "train" else FolderSource(folder, train.classes)
            for side, folder in folders.items()
            if folder
        }
    if not folders["train"] and (folders["val"] or folders["test"]):
        raise ValueError(f"{path} has a validation or test folder but no train folder")
    return {"train": FolderSource(path)}


def _first_existing(path: Path, names: Sequence[str]) -> Path | None:
    return next((path / name for name in names if (path / name).exists()), None)


def _same_classes(sources: dict[str, ImageSource]) -> dict[str, ImageSource]:
    for side, source in sources.items():
        if source.classes != sources["train"].classes:
            raise ValueError(f"the {side} side names other classes than the train side")
    return sources


def _splits(
    sources: dict[str, ImageSource], sides: dict[str, list[int]], classes: list[str], message: str
) -> Splits:
    opened = {side: Split(sources.get(side, sources["train"]), indices) for side, indices in sides.items()}
    return Splits(opened["train"], opened["val"], opened.get("test"), classes, message)


def _names(sources: dict[str, ImageSource], side: str, indices: list[int]) -> list[str]:
    source = sources.get(side, sources["train"])
    return [source.name(i) for i in indices]


def _skipped(
    sources: dict[str, ImageSource], reports: dict[str, FileReport], limit: float, run: Path
) -> list[dict[str, str]]:
    """Rows for the unreadable files; an error where they are too many."""
    rows = [
        {"side": side, "file": sources[side].name(i), "reason": reason}
        for side, report in reports.items()
        for i, reason in enumerate(report.reasons)
        if reason is not None
    ]
    total = sum(len(source) for source in sources.values())
    if len(rows) > limit * total:
        write_rows(run / "skipped.csv", rows)
        raise TooManyUnreadable(
            f"{len(rows)} of {total} files are unreadable, more than max_skipped ({limit:.0%}) allows; they "
            f"are listed in {run / 'skipped.csv'}, the first is {rows[0]['file']}: {rows[0]['reason']}"
        )
    return rows


def _drop_copies(sources: dict[str, ImageSource], reports: dict[str, FileReport]) -> list[dict[str, str]]:
    """Take out of a side what also lies, byte for byte, on a later side (test before val before train)."""
    rows: list[dict[str, str]] = []
    seen: dict[bytes, str] = {}
    for side in reversed([s for s in SPLITS if s in sources]):
        report = reports[side]
        here: dict[bytes, str] = {}
        for i, digest in enumerate(report.digests):
            if digest is None or report.reasons[i] is not None:
                continue
            if digest in seen:
                report.reasons[i] = f"same picture as {seen[digest]}"
                rows.append({"side": side, "file": sources[side].name(i), "reason": str(report.reasons[i])})
            here[digest] = f"{side}/{sources[side].name(i)}"
        seen |= here
    return rows


def _oddities(
    sources: dict[str, ImageSource], sides: dict[str, list[int]], reports: dict[str, FileReport]
) -> list[str]:
    """What a person should know of the data before hours are spent on it."""
    train, digests = sources["train"], reports["train"].digests
    counts = Counter(train.labels[i] for i in sides["train"])
    found = []
    for count, what in ((0, "no pictures"), (1, "one picture, which is never tested,")):
        names = [name for label, name in enumerate(train.classes) if counts[label] == count]
        if names:
            found.append(f"{what} in {_some(names)}")
    owner: dict[bytes, int] = {}
    twice = []
    for i in sides["train"]:
        digest = digests[i]
        if digest is not None and train.labels[owner.setdefault(digest, i)] != train.labels[i]:
            twice.append(f"{train.name(i)} is {train.name(owner[digest])}")
    if twice:
        found.append(f"{len(twice)} pictures lie in two classes: {_some(twice)}")
    return found


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _hold_out(
    sides: dict[str, list[int]],
    sources: dict[str, ImageSource],
    reports: dict[str, FileReport],
    config: DataConfig,
    seed: int,
) -> str:
    """Fill in missing sides from train, in place; returns how the sides came about."""
    given = [side for side in SPLITS if side in sides]
    train, report = sources["train"], reports["train"]
    held = []
    if given == ["train"]:
        held.append(("test", config.test_fraction))
    if "val" not in given:
        held.append(("val", config.val_fraction))
    for side, fraction in held:
        sides["train"], sides[side] = stratified_holdout(
            sides["train"], train.labels, report.digests, fraction, derive_seed(side, seed)
        )
    for side, indices in sides.items():
        if not indices:
            raise ValueError(
                f"the {side} side of {config.data} has no images: it needs more, or larger fractions"
            )
    counts = ", ".join(f"{len(sides[side])} {side}" for side in SPLITS if side in sides)
    how = (
        f"; {' and '.join(side for side, _ in held)} held out of train, stratified, seed {seed}"
        if held
        else ""
    )
    return f"{len(train.classes)} classes, images: {counts}{how}"


def stratified_holdout(
    indices: list[int], labels: Sequence[int], digests: Sequence[bytes | None], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split indices into (kept, held out), class by class; copies of one picture stay together.

    Every class with two pictures or more gives at least one and keeps at least one.
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
