"""Images a second that one core reads and augments for a classifier, with JPEGs decoded in full and reduced.

    python benchmarks/loading.py

The time is that of the processor, which other processes hardly change; ways alternate, with the same crops.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from atconv.data.images import PrepareImage
from atconv.data.sources.folders import FolderSource
from atconv.data.splits import Split
from atconv.engine.rng import seeded
from atconv.tasks.classification.augmentation import reduced_crop, train_transform
from atconv.tasks.classification.config import ClassificationConfig
from machine import machine_line

__all__ = ["ways_to_load", "write_images"]

IMAGES, ROUNDS = 24, 9


def write_images(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> None:
    """Smooth random colors with grain, about as large in bytes as photographs."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 4, (*smooth.shape[:2], 1))
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        (folder / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"class{i % 2}" / f"{i}.jpg", quality=90)


def ways_to_load(folder: Path) -> dict[str, Callable[[int], Any]]:
    """Ways to read and augment the i-th image of a folder for 224²."""
    source = FolderSource(folder)
    split, transform = Split(source, range(len(source))), train_transform(ClassificationConfig())
    whole, (cut, others) = PrepareImage(3), reduced_crop(transform, 3)
    tensors = v2.Compose(
        [
            v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    paths = [str(source.file(i)) for i in range(len(source))]
    return {
        "full": lambda i: transform(split.item(i, whole)[0]),
        "reduced": lambda i: others(split.item(i, cut)[0]),
        "torchvision": lambda i: tensors(decode_jpeg(read_file(paths[i]), ImageReadMode.RGB)),
        "full, decoding alone": lambda i: split.item(i, whole),
        "torchvision, decoding alone": lambda i: decode_jpeg(read_file(paths[i]), ImageReadMode.RGB),
    }


def _seconds(read: Callable[[int], Any], seed: int) -> float:
    started = time.process_time()
    with seeded(seed):
        for i in range(IMAGES):
            read(i)
    return (time.process_time() - started) / IMAGES


def main() -> None:
    torch.set_num_threads(1)
    print(f"# Reading and augmenting JPEGs for 224², on one core\n\n{machine_line()}")
    print(f"Medians of {ROUNDS} rounds of {IMAGES} images; ratios are medians over rounds.\n")
    print("| JPEGs | way | ms an image | images a second | times as fast as full |")
    print("| --- | --- | ---: | ---: | ---: |")
    for size in ((500, 375), (682, 512), (2000, 1500)):
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), IMAGES, size)
            stored = sum(path.stat().st_size for path in Path(folder).rglob("*.jpg")) / IMAGES
            ways = ways_to_load(Path(folder))
            for way in ways.values():
                way(0)
            times: dict[str, list[float]] = {name: [] for name in ways}
            for seed in range(ROUNDS):
                for name, way in ways.items():
                    times[name].append(_seconds(way, seed))
        for name, taken in times.items():
            ratio = median(a / b for a, b in zip(times["full"], taken, strict=True))
            print(f"| {size[0]} × {size[1]}, {stored / 1000:.0f} kB | {name} | {1000 * median(taken):.1f} | "
                  f"{1 / median(taken):.0f} | {ratio:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
