"""Where labeled images come from: folders, LMDB files, timm datasets, bundled digits, streams.

An `ImageSource` gives images by index, so that a run can split, shuffle and resume exactly. A `Stream`
only gives them in order.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import DatasetFolder

from atconv.data.images import IMAGE_SUFFIXES, Mode, as_mode, images_in, read_image, upright
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

    classes: list[str]
    checkable: bool = False
    """images are encoded files that may be unreadable"""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def labels(self) -> Sequence[int]:
        """Class index of every image."""

    @abstractmethod
    def read(self, index: int, mode: Mode) -> Image.Image:
        """The image, upright, as RGB or gray. Raises ValueError where it is unreadable."""

    def item(self, index: int, mode: Mode) -> tuple[Image.Image, int]:
        """Image and class index, from one access."""
        return self.read(index, mode), self.labels[index]

    def encoded(self, index: int) -> bytes:
        """The bytes of the file, for sources that are `checkable`."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """A name that stays the same from run to run."""
        return str(index)


class FolderSource(ImageSource):
    """root/CLASS/**/image.jpg; classes in alphabetical order, hidden files left out. Images that lie
    in root itself, where it has no folders, are one class.

    Raises:
        ValueError: no class folders, or no images in them.
    """

    checkable = True

    def __init__(self, root: Path, classes: list[str] | None = None) -> None:
        self.root = root
        folders = sorted(d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
        self.classes = folders if classes is None else classes
        unknown = sorted(set(folders) - set(self.classes))
        if unknown:
            raise ValueError(
                f"{root} has class folders that are not among the run's classes: {', '.join(unknown[:5])}"
            )
        if not self.classes and images_in(root):
            self.classes = [root.resolve().name]
            labeled = [(path, 0) for path in images_in(root)]
        else:
            labeled = [(p, label) for label, name in enumerate(self.classes) for p in images_in(root / name)]
        if not labeled:
            raise ValueError(
                f"no images in {root}: expected one folder a class, as {root}/CLASS/image.jpg "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        self.paths = [path for path, _ in labeled]
        self._labels = [label for _, label in labeled]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> Sequence[int]:
        return self._labels

    def read(self, index: int, mode: Mode) -> Image.Image:
        return read_image(self.paths[index], mode)

    def encoded(self, index: int) -> bytes:
        return self.paths[index].read_bytes()

    def name(self, index: int) -> str:
        return self.paths[index].relative_to(self.root).as_posix()


class LmdbSource(ImageSource):
    """A file in the release's LMDB format (see `lmdb_format`)."""

    checkable = True

    def __init__(self, path: Path) -> None:
        self.reader = LmdbReader(path)
        self.classes = self.reader.classes

    def __len__(self) -> int:
        return len(self.reader)

    @cached_property
    def labels(self) -> Sequence[int]:
        return [self.reader[i][1] for i in range(len(self))]

    def read(self, index: int, mode: Mode) -> Image.Image:
        return read_image(io.BytesIO(self.encoded(index)), mode)

    def item(self, index: int, mode: Mode) -> tuple[Image.Image, int]:
        encoded, label = self.reader[index]  # reading all labels first would read the full file
        return read_image(io.BytesIO(encoded), mode), label

    def encoded(self, index: int) -> bytes:
        return self.reader[index][0]


class DigitsSource(ImageSource):
    """scikit-learn's 1,797 real scans of handwritten digits, 8 × 8 gray. Nothing is downloaded."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.classes = [str(name) for name in digits.target_names]
        # Values are 0…16 ink counts.
        self._pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        self._labels = [int(label) for label in digits.target]

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> Sequence[int]:
        return self._labels

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
        self.classes = _class_names(dataset, self._reader, self.labels)

    def __len__(self) -> int:
        return len(self._dataset)

    @cached_property
    def labels(self) -> Sequence[int]:
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
