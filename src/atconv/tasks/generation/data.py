"""What a generator learns from: samples in the model's units, each with its noise, time and label.

Everything random about a training example is a function of (seed, epoch, sample): see `SampleKey`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from atconv.data.images import mode_for
from atconv.data.loaders import SampleKey
from atconv.data.splits import Split
from atconv.diffusion.interpolants import Interpolant
from atconv.engine.progress import track

__all__ = [
    "Example",
    "Examples",
    "Pixels",
    "TimeSampling",
    "TrainingExamples",
    "examples_loader",
    "fit_picture",
]

TimeSampling = Literal["uniform", "logit_normal", "edm"]

_CACHED_BYTES = 1 << 29  # pictures that take less are kept in memory


class Example(NamedTuple):
    """One training example, or a batch of them."""

    data: Tensor
    """C H W, in the model's units"""
    noise: Tensor
    """C H W, standard normal"""
    t: Tensor
    """scalar"""
    label: Tensor
    """class index, the null label, or 0 where there are no classes"""
    picture: Tensor
    """3 H W in [−1, 1], for an encoder; empty where none was asked for"""


class Examples(ABC):
    """Samples by position, in the model's units."""

    shape: tuple[int, int, int]
    """C H W"""
    labels: list[int]
    """class index of every sample"""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def draw(self, position: int, flip: bool, rng: torch.Generator) -> Tensor:
        """The sample at a position, C H W float32, mirrored if asked."""

    @abstractmethod
    def picture(self, position: int, flip: bool) -> Tensor:
        """The picture behind the sample, C H W in [−1, 1], mirrored if asked."""


class Pixels(Examples):
    """Pictures of a side, square, in [−1, 1]."""

    def __init__(self, side: Split, size: int, in_chans: int, console: Console) -> None:
        self.side, self.size, self.mode = side, size, mode_for(in_chans)
        self.shape = (in_chans, size, size)
        self.labels = side.labels
        self._cache: Tensor | None = None
        if len(side) * math.prod(self.shape) <= _CACHED_BYTES:
            positions = track(range(len(side)), console, "reading images", len(side))
            self._cache = torch.stack([self._read(i) for i in positions])

    def draw(self, position: int, flip: bool, rng: torch.Generator) -> Tensor:
        return self.picture(position, flip)

    def picture(self, position: int, flip: bool) -> Tensor:
        scaled = self.pixels(position).float() / 127.5 - 1
        return scaled.flip(2) if flip else scaled

    def pixels(self, position: int) -> Tensor:
        """C H W uint8, as it is."""
        return self._read(position) if self._cache is None else self._cache[position]

    def _read(self, position: int) -> Tensor:
        return torch.from_numpy(fit_picture(self.side.read(position, self.mode), self.size)).permute(2, 0, 1)


def fit_picture(image: Image.Image, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Resize the shorter side (bicubic, antialiased) and crop the center: H W C uint8 of size × size."""
    if image.size != (size, size):
        image = center_crop(
            resize(image, size, antialias=True, interpolation=InterpolationMode.BICUBIC), [size, size]
        )
    pixels = np.array(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


class TrainingExamples(Dataset[Example]):
    """Examples by key.

    Args:
        examples: the samples.
        interpolant: gives EDM-style times their meaning, and the interval that times are drawn from.
        interval: least and greatest time.
        times: distribution of times.
        hflip: probability of a mirrored sample.
        label_dropout: probability of the null label.
        null_label: its index; None where the model has none.
        pictures: give the pictures behind the samples too.
    """

    def __init__(
        self,
        examples: Examples,
        interpolant: Interpolant,
        interval: tuple[float, float],
        times: TimeSampling,
        hflip: float = 0.0,
        label_dropout: float = 0.0,
        null_label: int | None = None,
        pictures: bool = False,
    ) -> None:
        self.examples, self.interpolant, self.interval, self.times = examples, interpolant, interval, times
        self.hflip, self.label_dropout, self.null_label = hflip, label_dropout, null_label
        self.pictures = pictures

    def __getitem__(self, key: SampleKey) -> Example:
        rng = torch.Generator().manual_seed(key.seed)
        flip, drop = (torch.rand(2, generator=rng) < torch.tensor([self.hflip, self.label_dropout])).tolist()
        noise = torch.randn(self.examples.shape, generator=rng)
        t = self._time(rng)
        data = self.examples.draw(key.position, flip, rng)
        label = self.examples.labels[key.position]
        if drop and self.null_label is not None:
            label = self.null_label
        picture = self.examples.picture(key.position, flip) if self.pictures else torch.empty(0)
        return Example(data, noise, t, torch.tensor(label), picture)

    def _time(self, rng: torch.Generator) -> Tensor:
        low, high = self.interval
        if self.times == "uniform":
            return low + (high - low) * torch.rand((), generator=rng)
        normal = torch.randn((), generator=rng)
        # EDM's mean and deviation of log(noise/data).
        t = (
            normal.sigmoid()
            if self.times == "logit_normal"
            else self.interpolant.time_of_ratio((1.2 * normal - 1.2).exp())
        )
        return t.clamp(low, high)


def examples_loader(
    examples: TrainingExamples,
    batches: Sampler[list[SampleKey]] | Iterable[list[SampleKey]],
    workers: int,
    pin: bool,
) -> DataLoader[Example]:
    """Batches of examples, listed by their keys."""
    listed: Any = batches
    return DataLoader(examples, batch_sampler=listed, num_workers=workers, pin_memory=pin)
