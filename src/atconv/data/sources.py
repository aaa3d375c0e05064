"""Where labeled images come from: folders, LMDB files, bundled digits.

An `ImageSource` gives images by index, so that a run can split, shuffle and resume exactly.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from atconv.data.arrays import SharedNames
from atconv.data.config import DataConfig
from atconv.data.folders import inner_folder, paths_by_split, split_of, splits_among, subfolders
from atconv.data.images import Mode, as_mode, list_images, plugin_advice, read_image
from atconv.data.labels import make_labels
from atconv.data.lmdb_format import LmdbReader, is_lmdb
from atconv.data.table_files import why_unreadable
from atconv.io import first_few, read_bytes

__all__ = [
    "DigitsSource",
    "FolderSource",
    "ImageSource",
    "LmdbSource",
    "class_splits",
    "lmdb_files",
    "open_folder",
    "open_lmdb",
]


class ImageSource(ABC):
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

    @abstractmethod
    def read(self, index: int, mode: Mode) -> Image.Image:
        """The image, upright, as RGB or gray. Raises ValueError where it is unreadable."""

    def encoded(self, index: int) -> bytes:
        """The bytes of the file, for sources that are `checkable`."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """A name that stays the same from run to run."""
        return str(index)


class FolderSource(ImageSource):
    """root/CLASS/**/image.jpg; classes in alphabetical order, hidden files left out. Where no folder in
    root holds images, those in root itself are one class.

    Args:
        root: the folder.
        only_class: its name where there is just one; default: the folder's.

    Raises:
        ValueError: no images, or a folder cannot be read.
    """

    checkable = True

    def __init__(self, root: Path, only_class: str | None = None) -> None:
        self.root = root
        listing = list_images(root)
        names = [name for name in listing.files if "/" in name]
        loose = len(listing.files) - len(names)
        classes = [folder.name for folder in subfolders(root)]
        if not names:
            names, loose, classes = listing.files, 0, [only_class or root.resolve().name]
        others = ", ".join(
            f"{count} {suffix or 'without suffix'}" for suffix, count in listing.others.items()
        ) + plugin_advice(listing.others)
        if not names:
            raise ValueError(
                f"no images in {root}: expected one folder a class, as {root}/CLASS/image.jpg"
                + (f"; it holds files that are not read here: {others}" if others else "")
            )
        _check_classes(root, names)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[name.partition("/")[0]] if "/" in name else 0 for name in names]
        super().__init__(str(root), classes, labels)
        self._names = SharedNames(names)
        if listing.tool_folders:
            self.remarks.append(f"passed over in {root}: {first_few(sorted(listing.tool_folders))}")
        if others:
            self.remarks.append(f"not read, files of other kinds in {root}: {others}")
        if loose:
            self.remarks.append(f"not used, images in {root} itself, outside its class folders: {loose}")

    def _unknown_classes(self, names: Sequence[str]) -> str:
        inner = inner_folder(self.root)
        text = super()._unknown_classes(names).replace("has classes", "has class folders")
        return text + (f". Or is {inner} what you mean?" if inner else "")

    def read(self, index: int, mode: Mode) -> Image.Image:
        return read_image(self.root / self._names[index], mode)

    def encoded(self, index: int) -> bytes:
        return read_bytes(self.root / self._names[index])

    def name(self, index: int) -> str:
        return self._names[index]


class LmdbSource(ImageSource):
    """A file in the release's LMDB format (see `lmdb_format`)."""

    checkable = True

    def __init__(self, path: Path) -> None:
        self.reader = LmdbReader(path)
        super().__init__(str(path), self.reader.classes, self.reader.labels())

    def read(self, index: int, mode: Mode) -> Image.Image:
        return read_image(io.BytesIO(self.encoded(index)), mode)

    def encoded(self, index: int) -> bytes:
        return self.reader[index][0]


class DigitsSource(ImageSource):
    """scikit-learn's 1,797 real scans of handwritten digits, 8 × 8 gray. Nothing is downloaded."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        super().__init__("digits", [str(name) for name in digits.target_names], digits.target)
        # Values are 0…16 ink counts.
        self._pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)

    def read(self, index: int, mode: Mode) -> Image.Image:
        return as_mode(Image.fromarray(self._pixels[index]), mode)


def lmdb_files(data: Path) -> list[Path]:
    """The LMDB files that DATA is: itself, or those in a folder."""
    if data.is_dir() and not is_lmdb(data):
        return [file for file in sorted(data.glob("*.lmdb")) if is_lmdb(file) or split_of(file.stem)]
    return [data] if data.exists() and (is_lmdb(data) or data.suffix.lower() in (".lmdb", ".mdb")) else []


def open_lmdb(config: DataConfig) -> dict[str, ImageSource]:
    """LMDB files by split, or one that is all there is.

    Raises:
        ValueError: one is damaged, or none is named after the training split.
    """
    path = Path(config.data)
    files = lmdb_files(path)
    if files == [path]:
        return {"train": LmdbSource(path)}
    named = paths_by_split(files)
    if not named:
        raise ValueError(
            f"{path} holds LMDB files that are named after no split: give one of them, such as {files[0]}"
        )
    _check_train(path, named)
    return {split: LmdbSource(file) for split, file in named.items()}


def open_folder(config: DataConfig) -> dict[str, ImageSource]:
    """Folders of splits, or one that is all there is.

    Raises:
        ValueError: there are no images, no training split, or two folders for a split.
    """
    path = Path(config.data)
    named = class_splits(path)
    if not named:
        source = FolderSource(path)
        if len(source.classes) == 1:  # labels may be meant to come from a table
            source.remarks += [f"not read, {reason}" for reason in why_unreadable(path)]
        return {"train": source}
    _check_train(path, named)
    sources = {split: FolderSource(folder, path.resolve().name) for split, folder in named.items()}
    for split in [name for name, source in sources.items() if _is_unlabeled(source, sources["train"])]:
        sources["train"].remarks.append(f"not used, {named[split]}: its images are in no folders of classes")
        del sources[split]
    unused = [folder.name for folder in subfolders(path) if folder not in named.values()]
    if unused:
        used = ", ".join(folder.name for folder in named.values())
        sources["train"].remarks.append(f"not used, folders next to {used} in {path}: {first_few(unused)}")
    return dict(sources)


def class_splits(folder: Path) -> dict[str, Path]:
    """The folders of splits in a folder, by split; none where its folders are classes, of which one may be
    called "train": splits hold folders themselves, or have nothing but splits next to them.

    Raises:
        ValueError: a split has two.
    """
    folders = subfolders(folder)
    named = paths_by_split(folders)
    return named if any(map(subfolders, named.values())) or len(named) == len(folders) else {}


def _is_unlabeled(source: FolderSource, train: FolderSource) -> bool:
    """Whether images lie in no folders of classes, or in one that is no class, while those of train do."""
    return len(train.classes) > 1 and len(source.classes) == 1 and source.classes[0] not in train.classes


def _check_classes(root: Path, names: Sequence[str]) -> None:
    """Raise ValueError where folders of classes seem to be something else: all their images lie further down,
    in folders of splits, or in folders of the same names."""
    inner: dict[str, set[str]] = defaultdict(set)
    for name in names:
        folder, *below = name.split("/", 2)
        if len(below) < 2:
            return
        inner[folder].add(below[0])
    some = next(iter(inner))
    if len(inner) < 2:
        return
    if all(len(splits_among(map(Path, each))) == len(each) for each in inner.values()):
        raise ValueError(
            f"{root} holds folders of splits in those of classes, such as {some}/{min(inner[some])}: turn "
            f"that around, as {root}/{min(inner[some])}/{some}"
        )
    if len(inner[some]) > 1 and all(each == inner[some] for each in inner.values()):
        raise ValueError(
            f"{root}: {first_few(sorted(inner))} all hold the folders {first_few(sorted(inner[some]))}, "
            f"which seem to be the classes: give one of them, such as {root / some}, or call them train, val "
            f"and test. Where they are classes, put their images right into {root}/{some}"
        )


def _check_train(path: Path, splits: Collection[str]) -> None:
    if "train" not in splits:
        only = next(iter(splits))
        raise ValueError(
            f"{path} has a validation or test folder but no train folder; to evaluate on all images of one, "
            f"give {path / only}"
        )
