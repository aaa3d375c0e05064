"""Samples on disk: ADM-style .npz files, folders of PNG files, and one grid."""

from __future__ import annotations

import json
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from safetensors import SafetensorError
from tqdm import tqdm

from atconv.data.images import images_in, mode_for, read_image
from atconv.data.splits import Split
from atconv.diffusion.pipeline import SiTPipeline
from atconv.engine.progress import plain_console
from atconv.engine.rng import derive_seed
from atconv.engine.run import Run, resolve_device
from atconv.io import write_atomically
from atconv.tasks.generation.config import SamplerConfig
from atconv.tasks.generation.data import fit_picture
from atconv.tasks.generation.plots import draw_grid

__all__ = [
    "ImageSet",
    "PixelSet",
    "SampledImages",
    "SplitImages",
    "image_generators",
    "parse_classes",
    "read_samples",
    "sample_images",
    "sample_run",
    "write_npz",
    "write_pngs",
]

Pixels = NDArray[np.uint8]


class ImageSet(ABC):
    """Images as uint8 N H W C, given in batches, with a label each where they are known."""

    name: str
    labels: list[int] | None = None
    classes: Sequence[str] | None = None
    """names of the labels, where they are known"""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, positions: Sequence[int]) -> Pixels:
        """The images at these positions."""

    def batches(self, size: int) -> Iterator[Pixels]:
        """All of them, in order."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))

    def subset(self, most: int, seed: int) -> ImageSet:
        """At most so many, chosen at random."""
        if most >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False))
        return _Some([(self, int(position)) for position in chosen], self.name)

    @staticmethod
    def joined(sets: Sequence[ImageSet]) -> ImageSet:
        """All images of several sets."""
        return _Some([(part, i) for part in sets for i in range(len(part))], sets[0].name)


class PixelSet(ImageSet):
    """Images in memory."""

    def __init__(
        self,
        name: str,
        images: Pixels,
        labels: list[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.name, self.images, self.labels, self.classes = name, images, labels, classes

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: Sequence[int]) -> Pixels:
        return self.images[list(positions)]


class SplitImages(ImageSet):
    """The pictures of a side, read when they are asked for, at the size and channels of a generator."""

    def __init__(self, side: Split, size: int, channels: int, name: str) -> None:
        self.side, self.size, self.mode, self.name = side, size, mode_for(channels), name

    def __len__(self) -> int:
        return len(self.side)

    def take(self, positions: Sequence[int]) -> Pixels:
        return np.stack([fit_picture(self.side.read(i, self.mode), self.size) for i in positions])


class _Some(ImageSet):
    def __init__(self, members: list[tuple[ImageSet, int]], name: str) -> None:
        self.members, self.name = members, name

    def __len__(self) -> int:
        return len(self.members)

    def take(self, positions: Sequence[int]) -> Pixels:
        return np.concatenate([self.members[i][0].take([self.members[i][1]]) for i in positions])


def sample_run(
    run: str | Path,
    out: str | None = None,
    classes: str = "all",
    per_class: int = 10,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 64,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    options: SamplerConfig | None = None,
    console: Console | None = None,
) -> Path:
    """Draw samples from a generation run and write them.

    Args:
        run: the run's folder.
        out: FILE.png for a labeled grid, FILE.npz for one array as ADM's evaluator reads it, any other name
            for a folder of PNG files; default: RUN/samples-SAMPLER.png.
        classes: "all", or numbers, ranges and names separated by commas, such as 0-4,7,cat.
        per_class: images of each class; all images, for a run without classes.
        seed: image i is made from (seed, i).
        height: of the images, if not the trained size.
        width: of the images, if not the trained size.
        batch_size: images at a time.
        device: where the model runs; auto takes an accelerator if there is one.
        options: sampler, steps, guidance.
        console: where progress shows.

    Returns:
        what was written.

    Raises:
        FileNotFoundError, ValueError: no such run, a class or size it does not have, or a name that is taken.
    """
    console, options = console or plain_console(), options or SamplerConfig()
    target = Path(out) if out is not None else Path(run) / f"samples-{options.sampler}.png"
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} holds files already: name a new folder with --out")
    if per_class < 1 or batch_size < 1:
        raise ValueError(f"per_class and batch_size must be at least 1, got {per_class} and {batch_size}")
    pipeline = open_pipeline(run, resolve_device(device))
    names = pipeline.class_names
    if classes != "all" and not names:
        raise ValueError(f"{run} has no classes: leave --classes out; --per_class is the number of images")
    chosen: list[int | None] = [*parse_classes(classes, names)] if names else [None]
    target.parent.mkdir(parents=True, exist_ok=True)
    labels = [label for label in chosen for _ in range(per_class)]
    known = [label for label in labels if label is not None]
    images, evaluations, seconds = sample_images(
        pipeline, known or None, len(labels), options, seed, batch_size, height, width
    )
    if target.suffix == ".npz":
        write_npz(target, images, known or None)
    elif target.suffix == ".png":
        rows = [images[i : i + per_class] for i in range(0, len(images), per_class)]
        title = (
            f"{Path(run).name}: {options.sampler}, {evaluations} evaluations, guidance {options.guidance:g}"
        )
        draw_grid(rows, [names[label] if label is not None else "" for label in chosen], title, target)
    else:
        kinds = [f"{label:04d}-" if label is not None else "" for label in labels]
        write_pngs(target, images, [f"{kind}{i:06d}" for i, kind in enumerate(kinds)])
    console.print(
        f"{len(images)} images, {evaluations} evaluations and {seconds / len(images):.4f} s each: {target}",
        soft_wrap=True,
    )
    return target


def open_pipeline(run: str | Path, device: torch.device) -> SiTPipeline:
    """The generator of a run.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is not a generation run, or has no model yet.
    """
    path = Run.open(run).path
    if not (path / "model_index.json").is_file():
        raise ValueError(f"{path} is not a generation run: it was not made by atconv generate train")
    if not (path / "transformer" / "diffusion_pytorch_model.safetensors").is_file():
        raise ValueError(
            f"{path} has no model yet: its first epoch has not finished. "
            f"Continue it with atconv generate train --resume {path}"
        )
    disable_progress_bar()  # diffusers shows one for the files of a model; ours are of images
    try:
        return SiTPipeline.from_pretrained(path).to(device)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"the model in {path} is damaged: {str(error).partition(chr(10))[0]}") from error


class SampledImages(NamedTuple):
    """Images of a generator, and what they cost."""

    images: Pixels
    """N H W C"""
    evaluations: int
    """velocity evaluations for each image"""
    seconds: float
    """for all of them"""


def sample_images(
    pipeline: SiTPipeline,
    labels: Sequence[int] | None,
    count: int,
    options: SamplerConfig,
    seed: int = 0,
    batch_size: int = 64,
    height: int | None = None,
    width: int | None = None,
) -> SampledImages:
    """`count` images, one for each label where the model has classes. Image i depends on (seed, i) alone."""
    started = time.perf_counter()
    pipeline.scheduler = options.scheduler(pipeline.config.interpolant, pipeline.config.prediction)
    pipeline.set_progress_bar_config(disable=True)  # one bar for all batches
    images, evaluations = [], 0
    starts = range(0, count, batch_size)
    for start in tqdm(starts, desc="sampling", disable=None, leave=False):
        part = range(start, min(start + batch_size, count))
        output: Any = pipeline(
            None if labels is None else labels[part.start : part.stop],
            1 if labels is not None else len(part),
            options.guidance,
            options.steps,
            height,
            width,
            image_generators(seed, part),
            guidance_interval=options.guidance_interval,
            guidance_channels=options.guidance_channels,
            batch_size=batch_size,
            output_type="np",
        )
        images.append((output.images * 255).round().astype(np.uint8))
        evaluations = max(evaluations, output.evaluations)
    return SampledImages(np.concatenate(images), evaluations, time.perf_counter() - started)


def image_generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator for each image of a sampling run: its noise depends on (seed, index) alone, on every
    device."""
    return [torch.Generator().manual_seed(derive_seed("image", seed, index)) for index in indices]


def read_samples(path: Path) -> PixelSet:
    """Samples from an .npz file (arr_0 uint8 N H W 3, arr_1 labels, as ADM's evaluator takes them) or from a
    folder of pictures of one size.

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
            f"{path} is not an .npz file of samples: {str(error).partition(chr(10))[0]}"
        ) from error
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        found = "no arr_0" if images is None else f"arr_0 {images.dtype} {images.shape}"
        raise ValueError(f"{path} must hold arr_0 as uint8 N × H × W × 3, it has {found}")
    if not len(images):
        raise ValueError(f"{path} holds no images")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        labels = None
    return PixelSet(str(path), images, None if labels is None else [int(label) for label in labels])


def write_npz(path: Path, images: Pixels, labels: Sequence[int] | None) -> None:
    """Write samples as ADM's evaluator reads them: arr_0 uint8 N H W 3 (gray is repeated), arr_1 labels."""
    color = np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
    arrays: dict[str, Any] = {"arr_0": color}
    if labels is not None:
        arrays["arr_1"] = np.asarray(labels, dtype=np.int64)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would add .npz to it
            np.savez(file, **arrays)

    write_atomically(path, write)


def write_pngs(folder: Path, images: Pixels, names: Sequence[str]) -> None:
    """Write one PNG file an image, named by `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(images, names, strict=True):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{name}.png")


def parse_classes(text: str, names: Sequence[str]) -> list[int]:
    """Class numbers from "all", or from names, numbers and ranges separated by commas: "0-4,7,cat".

    Where the names are numbers themselves, as those of digits are, numbers and ranges are of names.

    Raises:
        ValueError: a class that is not there.
    """
    if text == "all":
        return list(range(len(names)))
    numbers = [int(name) for name in names] if all(name.isdigit() for name in names) else range(len(names))
    found: list[int] = []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        first, dash, last = part.partition("-")
        if part in names:
            found.append(names.index(part))
        elif first.isdigit() and (last.isdigit() or not dash):
            wanted = range(int(first), int(last or first) + 1)
            missing = next((number for number in wanted if number not in numbers), None)
            if missing is not None:
                raise ValueError(
                    f"class {missing} was asked for: the model has {len(names)}, "
                    f"{min(numbers)} to {max(numbers)}"
                )
            found.extend(numbers.index(number) for number in wanted)
        else:
            raise ValueError(f"no class {part!r}: give names, numbers, or ranges such as 0-9")
    if not found:
        raise ValueError(f"no class was asked for: the model has {len(names)}")
    return found


def _read_folder(folder: Path) -> PixelSet:
    paths = images_in(folder)
    if not paths:
        raise ValueError(f"no pictures in {folder}")
    images = [np.asarray(read_image(path)) for path in paths]
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise ValueError(f"the pictures in {folder} differ in size: {', '.join(map(str, sorted(sizes)[:3]))}")
    return PixelSet(str(folder), np.stack(images))
