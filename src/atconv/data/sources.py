"""Where labeled images come from: folders, LMDB files, timm datasets, bundled digits, streams.

An `ImageSource` gives images by index, so that a run can split, shuffle and resume exactly. A `Stream`
only gives them in order.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torchvision.datasets import DatasetFolder

from atconv.data.arrays import SharedIntegers, SharedNames
from atconv.data.folders import inner_folder, subfolders
from atconv.data.images import Mode, as_mode, list_images, read_image, upright
from atconv.data.lmdb_format import LmdbReader

__all__ = [
    "DigitsSource",
    "FolderSource",
    "ImageSource",
    "KeptImages",
    "LmdbSource",
    "Stream",
    "TimmSource",
]


class ImageSource(ABC):
    """Labeled images by index."""

    checkable: bool = False
    """images are encoded files that may be unreadable"""

    def __init__(self, origin: str, classes: Sequence[str], labels: ArrayLike) -> None:
        self.origin, self.classes = origin, list(classes)
        self._labels = SharedIntegers(labels)
        self.remarks: list[str] = []
        """what a person should know of it"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class index of every image."""
        return self._labels.array

    def relabel(self, classes: Sequence[str], used: Sequence[int] | None = None) -> None:
        """Number the classes as `classes` does, matched by name.

        Args:
            classes: their names from now on.
            used: positions of the images that must be of these classes, default all. Others are labeled −1.

        Raises:
            ValueError: images are of other classes.
        """
        numbers = {name: number for number, name in enumerate(classes)}
        renumbered = np.array([*(numbers.get(name, -1) for name in self.classes), -1])[self.labels]
        own = self.labels if used is None else self.labels[used]
        after = renumbered if used is None else renumbered[used]
        unknown = sorted(self.classes[label] for label in np.unique(own[after < 0]))
        if unknown:
            raise ValueError(self._unknown_classes(unknown))
        self.classes, self._labels = list(classes), SharedIntegers(renumbered)

    def _unknown_classes(self, names: Sequence[str]) -> str:
        return f"{self.origin} has classes that are not among the run's classes: {', '.join(names[:5])}"

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
        names = [name for name in listing.images if "/" in name]
        loose = len(listing.images) - len(names)
        classes = [folder.name for folder in subfolders(root)]
        if not names:
            names, loose, classes = listing.images, 0, [only_class or root.resolve().name]
        others = ", ".join(
            f"{count} {suffix or 'without suffix'}" for suffix, count in listing.others.items()
        )
        if not names:
            raise ValueError(
                f"no images in {root}: expected one folder a class, as {root}/CLASS/image.jpg"
                + (f"; it holds files that are not read here: {others}" if others else "")
            )
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[name.partition("/")[0]] if "/" in name else 0 for name in names]
        super().__init__(str(root), classes, labels)
        self._names = SharedNames(names)
        if listing.tool_folders:
            self.remarks.append(f"passed over in {root}: {', '.join(sorted(set(listing.tool_folders))[:5])}")
        if others:
            self.remarks.append(f"not read, files of other kinds in {root}: {others}")
        if loose:
            self.remarks.append(f"not used, images in {root} itself, outside its class folders: {loose}")

    def _unknown_classes(self, names: Sequence[str]) -> str:
        inner = inner_folder(self.root)
        return (
            f"{self.root} has class folders that are not among the run's classes: {', '.join(names[:5])}"
            + (f"; is {inner} what you mean?" if inner else "")
        )

    def read(self, index: int, mode: Mode) -> Image.Image:
        return read_image(self.root / self._names[index], mode)

    def encoded(self, index: int) -> bytes:
        return (self.root / self._names[index]).read_bytes()

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


class TimmSource(ImageSource):
    """One split of a map-style dataset by timm's name: torch/… or hfds/….

    Raises:
        ValueError: timm cannot open it (not there, unknown name, missing package).
    """

    def __init__(self, name: str, root: str | None, split: str) -> None:
        dataset = open_timm_dataset(name, root, split)
        self._dataset = dataset
        # timm's own ImageDataset replaces an unreadable image by the next one: read below it.
        self._reader = getattr(dataset, "reader", None)
        # torchvision's folders convert images their own way: read their files as all others.
        self._files = dataset.samples if isinstance(dataset, DatasetFolder) else None
        self.checkable = self._reader is not None or self._files is not None
        labels = self._read_labels()
        super().__init__(f"{name}, split {split},", _class_names(dataset, self._reader, labels), labels)

    def _read_labels(self) -> list[int]:
        for attribute in ("targets", "labels", "_labels"):
            labels = getattr(self._dataset, attribute, None)
            if labels is not None and len(labels) == len(self._dataset):
                return [int(label) for label in labels]
        if self._reader is not None and hasattr(self._reader, "iter_targets"):
            return [int(label) for label in self._reader.iter_targets()]
        return [int(self._item(i)[1]) for i in range(len(self._dataset))]

    def read(self, index: int, mode: Mode) -> Image.Image:
        image = self._item(index)[0]
        return upright(image, mode) if isinstance(image, Image.Image) else read_image(image, mode)

    def encoded(self, index: int) -> bytes:
        return Path(self._files[index][0]).read_bytes() if self._files else self._item(index)[0].read()

    def _item(self, index: int) -> tuple[Any, Any]:
        source = self._reader or self._files or self._dataset
        return source[index]


class Stream:
    """A dataset that timm only gives in order: wds/…, tfds/…, hfids/…. Iterates over (PIL image, label).

    Raises:
        ValueError: timm cannot open it, or its length or classes are unknown: name them.
    """

    def __init__(
        self, name: str, root: str | None, split: str, training: bool, batch_size: int, samples: int | None,
        classes: int | None, seed: int,
    ) -> None:  # fmt: skip
        self.dataset = open_timm_dataset(
            name, root, split, is_training=training, batch_size=batch_size, num_samples=samples, seed=seed
        )
        length = samples or len(self.dataset)
        if not length:
            raise ValueError(f"{name} does not say how many images it has: give --epoch-samples")
        self.samples = int(length)
        known = getattr(self.dataset.reader, "class_to_idx", None)
        if known:
            self.classes = [str(c) for c, _ in sorted(known.items(), key=lambda item: item[1])]
        elif classes:
            self.classes = [str(i) for i in range(classes)]
        else:
            raise ValueError(f"{name} does not name its classes: give --num-classes")

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        yield from self.dataset


class KeptImages:
    """Some images of a stream, by their position in it, collected by going through it once."""

    def __init__(self, stream: Stream, positions: Sequence[int]) -> None:
        wanted = set(positions)
        self._kept = {i: image for i, (image, _) in enumerate(stream) if i in wanted}

    def read(self, position: int, mode: Mode) -> Image.Image:
        return upright(self._kept[position], mode)

    def name(self, position: int) -> str:
        return str(position)


def open_timm_dataset(name: str, root: str | None, split: str, **options: Any) -> Any:
    """`timm.data.create_dataset` with every failure explained in one line."""
    from timm.data import create_dataset

    if root is not None and not Path(root).exists():
        raise ValueError(f"data_root {root} does not exist")
    if name.startswith("torch/") and root is None:
        raise ValueError(f"{name} needs --data-root, the folder its files lie in")
    try:
        # No color mode: images are converted here, as in prediction.
        options = {"input_img_mode": None, **options}
        return create_dataset(name, root=root, split=split, **options)
    except ImportError as error:
        raise ValueError(f"{name} needs a package that is not installed: {error}") from error
    except (AssertionError, LookupError, RuntimeError, ValueError, OSError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        hint = " (python -m studies.datasets.fashion_mnist ROOT, in a checkout, unpacks Debian's files)"
        hint = hint if "fashion" in name else ""
        raise ValueError(f"timm cannot open {name}, split {split}, in {root}: {reason}{hint}") from error


def _class_names(dataset: Any, reader: Any, labels: Sequence[int]) -> list[str]:
    names = getattr(dataset, "classes", None)
    if names:
        return [str(name) for name in names]
    known = getattr(reader, "class_to_idx", None)
    if known:
        return [str(name) for name, _ in sorted(known.items(), key=lambda item: item[1])]
    return [str(i) for i in range(max(labels) + 1)]
