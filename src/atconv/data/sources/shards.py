"""WebDataset shards: tar files in which members of one name are a sample, such as 0001.jpg and 0001.cls.

Their headers are read once, and images by their place from then on: a run splits, shuffles, shares out and
resumes them to the sample as it does files. A pipeline of webdataset's gives whole shards to processes, and
resumes none.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from atconv.data.arrays import SharedIntegers, SharedNames
from atconv.data.boxes.reading import read_names
from atconv.data.config import DataConfig
from atconv.data.folders import SPLITS, split_of, splits_among, subfolders
from atconv.data.images import image_suffixes
from atconv.data.listing import is_ignored, scan
from atconv.data.other_formats import has_image
from atconv.data.sources.base import ImageSource
from atconv.data.tables.columns import LABEL_NAMES
from atconv.data.tables.labels import find_separator, number_labels
from atconv.data.unreadable import in_threads
from atconv.engine.reading import read_json
from atconv.io import first_few

__all__ = ["Shard", "ShardSource", "open_shards", "shard_splits"]

_MAX_LABEL = 1 << 20  # bytes of a member that holds a label
_LOOKED_AT = 16  # members, and files, that show whether tar files hold samples


class _DamagedSample(ValueError):
    """A sample's label cannot be read."""


class Shard(NamedTuple):
    """The samples of a tar file that hold an image."""

    file: str
    """relative to DATA"""
    names: list[str]
    places: list[tuple[int, int]]
    """where each image begins, and its length"""
    cells: list[Any]
    """the label of each, or a list; "" where it has none"""
    left_out: list[tuple[str, str]]
    """samples whose label is missing or cannot be read, and why"""
    others: int
    """samples without an image"""
    held: list[str]
    """what its first sample holds"""


class ShardSource(ImageSource):
    """The images of some shards in a folder."""

    checkable = True

    def __init__(
        self, root: Path, shards: Sequence[Shard], classes: Sequence[str], labels: NDArray[Any]
    ) -> None:
        super().__init__(str(root), classes, labels)
        self._root, self._files = root, SharedNames(shard.file for shard in shards)
        self._names = SharedNames(name for shard in shards for name in shard.names)
        self._places = SharedIntegers([place for shard in shards for place in shard.places])
        counts = [len(shard.names) for shard in shards]
        self._shards = SharedIntegers(np.repeat(np.arange(len(shards)), counts), np.int32)

    @property
    def shards(self) -> NDArray[np.int32]:
        return self._shards.array

    def _shard(self, index: int) -> str:
        return self._files[int(self.shards[index])]

    def file(self, index: int) -> BinaryIO:
        start, length = self._places.array[index].tolist()
        with (self._root / self._shard(index)).open("rb") as shard:
            shard.seek(start)
            return io.BytesIO(shard.read(length))

    def name(self, index: int) -> str:
        return f"{self._shard(index)}/{self._names[index]}"


def shard_splits(data: Path) -> dict[str, list[str]]:
    """The shards that DATA is or holds, by split, relative to its folder; those of no split under "" next to
    others, and as "train" where there are no splits. Nothing where DATA is something else.

    Raises:
        ValueError: its _info.json is damaged, or names files that are not there.
    """
    if data.is_file():
        return {"train": [data.name]} if _holds_samples(data) else {}
    folders = splits_among(subfolders(data))
    places = [data, *folders] if data.is_dir() else []
    tars = {place: [place / e.name for e in scan(place) if _is_tar(e)] for place in places}
    every = [path for paths in tars.values() for path in paths]
    if not any(map(_holds_samples, every[:_LOOKED_AT])) or has_image(data):
        return {}
    names = [path.relative_to(data).as_posix() for path in every]
    if listed := _listed_splits(data, names):
        return listed
    inside = {path: split for folder, split in folders.items() for path in tars[folder]}
    split_names = splits_among(tars[data]) | inside
    splits: dict[str, list[str]] = defaultdict(list)
    for path, name in zip(every, names, strict=True):
        splits[split_names.get(path, "")].append(name)
    return dict(splits) if split_names else {"train": names}


def _is_tar(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(".tar") and entry.is_file() and not is_ignored(entry.name)


def _listed_splits(data: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The shards of each split as timm's _info.json lists them, if there is one."""
    path = next((data / name for name in ("_info.json", "info.json") if (data / name).is_file()), None)
    listed = {} if path is None else read_json(path, {"splits": dict | None}).get("splits") or {}
    splits = {}
    for name, split in listed.items():
        files = split.get("filenames") if isinstance(split, dict) else None
        if split_of(name) is None or not isinstance(files, list) or not files:
            raise ValueError(
                f"{path}: the split {name!r} must be called train, val or test and list filenames"
            )
        missing = [str(file) for file in files if file not in names]
        if missing:
            raise ValueError(f"{path} lists shards that are not in {data}: {first_few(missing)}")
        splits[cast(str, split_of(name))] = files
    return splits


def _holds_samples(path: Path) -> bool:
    """Whether a tar file begins with an image that has more members of its name."""
    samples: dict[str, set[str]] = defaultdict(set)
    with suppress(tarfile.TarError, OSError), tarfile.open(path, "r:") as tar:
        for member in filter(None, (tar.next() for _ in range(_LOOKED_AT))):
            if split := _key_and_suffix(member.name):
                samples[split[0]].add(split[1])
    return any(len(suffixes) > 1 and any(map(_is_image, suffixes)) for suffixes in samples.values())


def _key_and_suffix(member: str) -> tuple[str, str] | None:
    """The name that the members of a sample share, and what this one is: all from the first dot on."""
    folder, slash, name = member.rpartition("/")
    stem, _, suffix = name.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem and suffix else None


def _is_image(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in image_suffixes()


def open_shards(config: DataConfig) -> dict[str, ImageSource]:
    """The images of each split, or all there are.

    Raises:
        ValueError: a shard is damaged, or labels are missing or wrong; files and samples are named.
    """
    data = Path(config.data)
    splits = shard_splits(data)
    root = data.parent if data.is_file() else data
    unused = splits.pop("", [])
    if "train" not in splits:
        raise ValueError(f"{data} has no training shards, only {', '.join(splits)}")
    remarks = [f"not used, shards of no split in {data}: {first_few(unused)}"] if unused else []
    files = [file for split in SPLITS for file in splits.get(split, ())]
    read = in_threads(
        lambda i: _read_shard(root, files[i], config.label_column), len(files), "reading shards"
    )
    by_file = dict(zip(files, read, strict=True))
    parts: dict[str, list[Shard]] = {}
    for split in (split for split in SPLITS if split in splits):
        parts[split] = [by_file[file] for file in splits[split]]
        if any(cell != "" for shard in parts[split] for cell in shard.cells):
            continue
        held = first_few(parts[split][0].held, count=20)
        damaged = next(((shard, *each) for shard in parts[split] for each in shard.left_out), None)
        if split == "train" and damaged:
            raise ValueError(f"{root / damaged[0].file}: {damaged[1]}: {damaged[2]}")
        reason = f"no sample of the {split} split of {data} has a label: its first holds {held}"
        if split == "train":
            raise ValueError(f"{reason}. Name a member, or a field of its json, with --label-column")
        remarks.append(f"not used: {reason}")
        del parts[split]
    every = [cell for shards in parts.values() for shard in shards for cell in shard.cells]
    separator = config.label_separator or find_separator(every)
    if separator == "none":
        parts = {split: list(map(_leave_out_unlabeled, shards)) for split, shards in parts.items()}
    cells = [
        [(f"{root / s.file}: {n}", cell) for s in shards for n, cell in zip(s.names, s.cells, strict=True)]
        for shards in parts.values()
    ]
    classes, labels = number_labels(cells, separator, guessed=False)
    classes = _named(classes, root / "classes.txt")
    sources: dict[str, ImageSource] = {
        split: ShardSource(root, shards, classes, own)
        for (split, shards), own in zip(parts.items(), labels, strict=True)
    }
    for split, shards in parts.items():
        sources[split].left_out = [(f"{s.file}/{name}", why) for s in shards for name, why in s.left_out]
    others = sum(shard.others for shards in parts.values() for shard in shards)
    if others:
        remarks.append(f"not used, samples without an image in {data}: {others}")
    sources["train"].remarks += remarks
    return sources


def _named(classes: list[str], file: Path) -> list[str]:
    """Classes that are numbers by their names in a file, from 0 on, if there is one."""
    if not file.is_file() or not all(name.isdecimal() for name in classes):
        return classes
    names, highest = read_names(file), max(map(int, classes))
    if highest >= len(names) or len({*names}) < len(names):
        raise ValueError(
            f"{file} must name the classes 0 … {highest}, one a line and each once, got {first_few(names)}"
        )
    return [names[int(number)] for number in classes]


def _leave_out_unlabeled(shard: Shard) -> Shard:
    kept = [i for i, cell in enumerate(shard.cells) if cell != ""]
    missing = [(n, "it has no label") for n, cell in zip(shard.names, shard.cells, strict=True) if cell == ""]
    return shard._replace(
        names=[shard.names[i] for i in kept],
        places=[shard.places[i] for i in kept],
        cells=[shard.cells[i] for i in kept],
        left_out=[*shard.left_out, *missing],
    )


def _read_shard(root: Path, file: str, label: str | None) -> Shard:
    """Go through the headers of a tar file, and read labels."""
    path = root / file
    try:
        with tarfile.open(path, "r:") as tar:
            samples = _read_headers(tar, path)
            opened = cast(BinaryIO, tar.fileobj)
            images = {key: _image_of(members, f"{path}: {key}") for key, members in samples.items()}
            cells: dict[str, Any] = {}
            left_out = []
            with_image = [key for key, image in images.items() if image]
            for key in with_image:
                try:
                    cells[key] = _read_label(opened, samples[key], label, f"{path}: {key}")
                except _DamagedSample as error:
                    left_out.append((f"{key}.{images[key]}", str(error)))
            held = sorted(samples[with_image[0]]) if with_image else []
            with suppress(_DamagedSample):
                held += [f"json: {n}" for n in (_read_json(opened, samples[with_image[0]]) if held else ())]
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} is damaged or no tar file without compression ({error})") from error
    names = [f"{key}.{images[key]}" for key in cells]
    places = [samples[key][cast(str, images[key])] for key in cells]
    others = len(samples) - len(with_image)
    return Shard(file, names, places, list(cells.values()), left_out, others, held)


def _read_headers(tar: tarfile.TarFile, path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """The members of each sample by their suffix: where they begin, and their length."""
    samples: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    while (member := tar.next()) is not None:
        split = _key_and_suffix(member.name)
        if not member.isreg() or member.issparse() or split is None:
            continue
        key, suffix = split
        if suffix in samples[key]:
            raise ValueError(f"{path} holds {key}.{suffix} twice")
        samples[key][suffix] = (member.offset_data, member.size)
    file = cast(BinaryIO, tar.fileobj)
    file.seek(tar.offset)
    end = file.read(_MAX_LABEL)
    if not end or end.strip(b"\0"):  # tarfile takes anything that is no header for the end
        raise ValueError(f"{path} is damaged after {tar.offset} bytes: it is cut, or several in one")
    return samples


def _image_of(members: Mapping[str, Any], where: str) -> str | None:
    """The member that is the image: without a dot in its suffix where there are others, as seg.png is."""
    images = [suffix for suffix in members if _is_image(suffix)]
    images = [suffix for suffix in images if "." not in suffix] or images
    if len(images) > 1:
        raise ValueError(f"{where} holds several images: {', '.join(images)}. Leave one")
    return images[0] if images else None


def _read_label(file: BinaryIO, members: Mapping[str, tuple[int, int]], label: str | None, where: str) -> Any:
    """The label of a sample, or a list of labels: a member, default cls, or a field of its json, default the
    first of a usual name. "" where there is none."""
    suffix = "cls" if label is None else label.lower()
    if suffix in members:
        return _read_member(file, members[suffix]).strip()
    content = _read_json(file, members)
    usual = {name.lower(): name for name in content}
    field = next((usual[n] for n in LABEL_NAMES if n in usual), "") if label is None else label
    value = content.get(field)
    if isinstance(value, list):
        return list(map(str, value))
    if isinstance(value, dict):
        raise ValueError(f"{where}: {field} in its json is no label: choose another with --label-column")
    return "" if value is None else str(value).strip()


def _read_json(file: BinaryIO, members: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The fields of a sample's json, if it has one."""
    text = _read_member(file, members["json"]) if "json" in members else "{}"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _DamagedSample(f"its json cannot be read ({error})") from error
    return content if isinstance(content, dict) else {}


def _read_member(file: BinaryIO, place: tuple[int, int]) -> str:
    start, length = place
    if length > _MAX_LABEL:
        raise _DamagedSample(f"a label of {length} bytes is none")
    file.seek(start)
    try:
        return file.read(length).decode()
    except UnicodeDecodeError as error:
        raise _DamagedSample("its label is not in UTF-8") from error
