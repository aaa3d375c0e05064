"""Sets of images: in memory, of a split, in ADM-style .npz files, in folders of PNG files."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, Subset

from atconv.data.images import read_image
from atconv.data.listing import images_in
from atconv.io import write_atomically

__all__ = [
    "ImageSet",
    "SampleSet",
    "batches",
    "parse_classes",
    "random_subset",
    "read_samples",
    "to_pil",
    "write_npz",
    "write_pngs",
]

Pixels = NDArray[np.uint8]
ImageSet = Dataset[Pixels]
"""images as uint8 H W C, all of one size"""


@dataclass(frozen=True, eq=False)
class SampleSet(ImageSet):
    """Images in memory, with a label each where they are known."""

    images: Pixels
    """N H W C"""
    labels: list[int] | None = None
    classes: Sequence[str] | None = None
    """names of the labels"""
    sampling: dict[str, Any] | None = None
    """options of the generator that made them, and what they cost"""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Pixels:
        return self.images[position]


def batches(images: ImageSet, size: int) -> Iterator[Pixels]:
    """All images in order, N H W C at a time."""
    count = len(images)  # type: ignore[arg-type]  # torch's Dataset does not declare it
    for start in range(0, count, size):
        yield np.stack([images[i] for i in range(start, min(start + size, count))])


def random_subset(images: ImageSet, size: int, seed: int) -> ImageSet:
    """At most `size` images, chosen at random."""
    count = len(images)  # type: ignore[arg-type]
    if size >= count:
        return images
    chosen = np.sort(np.random.default_rng(seed).choice(count, size, replace=False))
    return Subset(images, chosen.tolist())


def read_samples(path: Path) -> SampleSet:
    """Samples from an .npz file (arr_0 uint8 N H W 3, arr_1 labels, as ADM's evaluator takes them) or from a
    folder of images of one size.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: it holds no such images.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such samples: {path}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = arrays.files
            images = arrays["arr_0"] if "arr_0" in names else None
            labels = arrays["arr_1"] if "arr_1" in names else None
    except (OSError, ValueError, EOFError, BadZipFile, KeyError, zlib.error) as error:
        raise ValueError(
            f"{path} is not an .npz file of samples, or is damaged: save arr_0 with numpy.savez"
        ) from error
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        content = "no arr_0" if images is None else f"arr_0 {images.dtype} {images.shape}"
        raise ValueError(f"{path} must hold arr_0 as uint8 N × H × W × 3, it has {content}")
    if not len(images):
        raise ValueError(f"{path} holds no images")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        labels = None
    return SampleSet(images, None if labels is None else labels.tolist())


def _read_folder(folder: Path) -> SampleSet:
    paths = images_in(folder)
    if not paths:
        raise ValueError(f"no images in {folder}")
    images = [np.asarray(read_image(path)) for path in paths]
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise ValueError(f"the images in {folder} differ in size: {', '.join(map(str, sorted(sizes)[:3]))}")
    return SampleSet(np.stack(images))


def write_npz(path: Path, images: Pixels, labels: Sequence[int] | None) -> None:
    """Write samples as ADM's evaluator reads them: arr_0 uint8 N H W 3 (gray is repeated), arr_1 labels."""
    color = np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
    arrays: dict[str, Any] = {"arr_0": color}
    if labels is not None:
        arrays["arr_1"] = np.asarray(labels, dtype=np.int64)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # numpy would add .npz to a name
            np.savez(file, **arrays)

    write_atomically(path, write)


def write_pngs(folder: Path, images: Pixels, names: Sequence[str]) -> None:
    """Write one PNG file an image, named by `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(images, names, strict=True):
        to_pil(image).save(folder / f"{name}.png")


def to_pil(image: Pixels) -> Image.Image:
    """uint8 H W C of 1 or 3 channels → a PIL image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def parse_classes(text: str, names: Sequence[str]) -> list[int]:
    """Class numbers from "all", or from names, numbers and ranges separated by commas: "0-4,7,cat".

    Where the names are numbers themselves, as those of digits are, numbers and ranges are of names.

    Raises:
        ValueError: a class that is not there.
    """
    if text == "all":
        return list(range(len(names)))
    numbers = [int(name) for name in names] if all(name.isdigit() for name in names) else range(len(names))
    classes: list[int] = []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        first, dash, last = part.partition("-")
        if part in names:
            classes.append(names.index(part))
        elif first.isdigit() and (last.isdigit() or not dash):
            wanted = range(int(first), int(last or first) + 1)
            missing = next((number for number in wanted if number not in numbers), None)
            if missing is not None:
                raise ValueError(
                    f"class {missing} was asked for: the model has {len(names)}, "
                    f"{min(numbers)} to {max(numbers)}"
                )
            classes.extend(numbers.index(number) for number in wanted)
        else:
            raise ValueError(f"no class {part!r}: give names, numbers, or ranges such as 0-9")
    if not classes:
        raise ValueError(f"no class was asked for: the model has {len(names)}")
    return classes
