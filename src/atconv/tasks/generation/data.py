"""What a generator learns from: samples in the model's units, each with its noise, time and label.

Everything random about a training example is a function of (seed, epoch, sample): see `SampleKey`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from atconv.data.arrays import SharedIntegers
from atconv.data.images import mode_for
from atconv.data.loaders import SampleKey
from atconv.data.splits import Split
from atconv.diffusion.interpolants import Interpolant
from atconv.engine.progress import progress
from atconv.tasks.generation.config import TimeSampling

__all__ = [
    "Example",
    "Pixels",
    "SampleDataset",
    "SplitImages",
    "TrainingExamples",
    "fit_image",
    "scale_pixels",
]

_CACHED_BYTES = 1 << 29  # images that take less are kept in memory


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
    image: Tensor
    """3 H W in [−1, 1], for an encoder; empty where there is none"""


class SampleDataset(Dataset[tuple[Tensor, int]]):
    """Samples in the model's units, C H W float32, with their labels."""

    shape: tuple[int, int, int]
    """C H W"""
    images: Any
    """what lies behind the samples: uint8 H W C by position"""

    def __init__(self, labels: ArrayLike) -> None:
        self._labels = SharedIntegers(labels)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class index of every sample."""
        return self._labels.array

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.load(position), int(self.labels[position])

    @abstractmethod
    def load(self, position: int, flip: bool = False, rng: torch.Generator | None = None) -> Tensor:
        """The sample at a position, mirrored or not; `rng` is for what is random about it."""

    def image(self, position: int, flip: bool = False) -> Tensor:
        """The image behind the sample, C H W in [−1, 1], mirrored or not."""
        return scale_pixels(self.images[position], flip)


class SplitImages(Dataset[NDArray[np.uint8]]):
    """The images of a split as uint8 H W C, square, in color or gray, read when they are needed."""

    def __init__(self, split: Split, size: int, channels: int) -> None:
        self.split, self.size, self.mode = split, size, mode_for(channels)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        return fit_image(self.split.read(position, self.mode), self.size)


class Pixels(SampleDataset):
    """Images of a split, square, in [−1, 1]."""

    def __init__(self, split: Split, size: int, in_chans: int) -> None:
        self.images = SplitImages(split, size, in_chans)
        self.shape = (in_chans, size, size)
        super().__init__(split.labels)
        if len(split) * math.prod(self.shape) <= _CACHED_BYTES:
            positions = progress(range(len(split)), "reading images")
            self.images = torch.from_numpy(np.stack([self.images[i] for i in positions]))

    def load(self, position: int, flip: bool = False, rng: torch.Generator | None = None) -> Tensor:
        return self.image(position, flip)


def fit_image(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize the shorter edge (bicubic, antialiased) and crop the center: H W C uint8 of size × size."""
    if image.size != (size, size):
        image = center_crop(
            resize(image, size, antialias=True, interpolation=InterpolationMode.BICUBIC), [size, size]
        )
    pixels = np.array(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def scale_pixels(pixels: Tensor | NDArray[np.uint8], flip: bool = False) -> Tensor:
    """uint8 H W C → C H W in [−1, 1], mirrored or not."""
    scaled = torch.as_tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1
    return scaled.flip(2) if flip else scaled


class TrainingExamples(Dataset[Example]):
    """Examples by key.

    Args:
        samples: what is learned.
        interpolant: gives EDM-style times their meaning.
        interval: min and max time.
        times: distribution of times.
        hflip: probability of a mirrored sample.
        label_dropout: probability of the null label.
        null_label: its index; None where the model has none.
        images: give the images behind the samples too.
    """

    def __init__(
        self,
        samples: SampleDataset,
        interpolant: Interpolant,
        interval: tuple[float, float],
        times: TimeSampling,
        hflip: float = 0.0,
        label_dropout: float = 0.0,
        null_label: int | None = None,
        images: bool = False,
    ) -> None:
        self.samples, self.interpolant, self.interval, self.times = samples, interpolant, interval, times
        self.hflip, self.label_dropout, self.null_label = hflip, label_dropout, null_label
        self.images = images

    def __getitem__(self, key: SampleKey) -> Example:
        rng = torch.Generator().manual_seed(key.seed)
        flip, drop = (torch.rand(2, generator=rng) < torch.tensor([self.hflip, self.label_dropout])).tolist()
        noise = torch.randn(self.samples.shape, generator=rng)
        t = self._time(rng)
        data = self.samples.load(key.position, flip, rng)
        label = int(self.samples.labels[key.position])
        if drop and self.null_label is not None:
            label = self.null_label
        image = self.samples.image(key.position, flip) if self.images else torch.empty(0)
        return Example(data, noise, t, torch.tensor(label), image)

    def _time(self, rng: torch.Generator) -> Tensor:
        low, high = self.interval
        if self.times == "uniform":
            return low + (high - low) * torch.rand((), generator=rng)
        normal = torch.randn((), generator=rng)
        if self.times == "logit_normal":
            t = normal.sigmoid()
        else:  # EDM's mean and deviation of log(noise/data)
            t = self.interpolant.time_of_ratio((1.2 * normal - 1.2).exp())
        return t.clamp(low, high)
