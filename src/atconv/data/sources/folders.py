"""Images in a folder for each class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from atconv.data.arrays import SharedNames
from atconv.data.config import DataConfig
from atconv.data.folders import inner_folder, paths_by_split, splits_among, subfolders
from atconv.data.images import plugin_advice
from atconv.data.listing import list_images
from atconv.data.sources.base import ImageSource, check_train
from atconv.data.tables.files import why_unreadable
from atconv.io import first_few

__all__ = ["FolderSource", "class_splits", "open_folder"]


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

    def file(self, index: int) -> Path:
        return self.root / self._names[index]

    def name(self, index: int) -> str:
        return self._names[index]


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
    check_train(path, named)
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
