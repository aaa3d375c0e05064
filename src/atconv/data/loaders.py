"""From a split to batches of tensors.

What a sample looks like is a function of (seed, epoch, sample, copy): the sampler hands each index out
together with its seed, so workers, their number and a resume in mid-epoch change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from atconv.data.images import PrepareImage
from atconv.data.splits import Split
from atconv.engine.batch_plan import BatchPlan
from atconv.engine.rng import derive_seed, seed_generators, seeded

__all__ = [
    "EpochBatches",
    "EpochLoader",
    "Items",
    "SampleKey",
    "SeededItems",
    "eval_loader",
    "readable_loader",
    "train_loader",
]

T = TypeVar("T")
Transform = Callable[[Image.Image], Tensor]
_CPU = torch.device("cpu")
_OPEN_SHARDS = 16  # that an epoch reads from at a time


class SampleKey(NamedTuple):
    """Which image, and the seed of its augmentation."""

    position: int
    seed: int


class EpochBatches(Sampler[list[SampleKey]]):
    """One process's micro-batches of an epoch, from the `start`-th on.

    The order of an epoch is a permutation seeded by (seed, epoch); with `repeats` copies follow each
    other in it and it is cut to the same length. With `weights` an image stands in it as often as its share
    of them says, rounded up or down by chance. Processes take every `processes`-th image of each total
    batch, so a batch holds the same images however many processes share it. With `shards`, that of each
    image, those of a shard come close to each other: disks read what lies together.
    """

    def __init__(
        self,
        samples: int,
        plan: BatchPlan,
        seed: int,
        epoch: int,
        rank: int = 0,
        repeats: int = 1,
        start: int = 0,
        weights: NDArray[np.float64] | None = None,
        shards: NDArray[np.int32] | None = None,
    ) -> None:
        self.samples, self.plan, self.seed, self.epoch = samples, plan, seed, epoch
        self.rank, self.repeats, self.start, self.weights = rank, repeats, start, weights
        self.shards = shards

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.plan.accumulate - self.start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self._order(np.random.default_rng(derive_seed("order", self.seed, self.epoch)))
        total, micro = self.plan.global_batch_size, self.plan.micro_batch
        for index in range(self.start, self.start + len(self)):
            step, part = divmod(index, self.plan.accumulate)
            mine = range(step * total + self.rank, (step + 1) * total, self.plan.processes)
            yield [self._key(place, int(order[place])) for place in mine[part * micro : (part + 1) * micro]]

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        order = rng.permutation(self.samples)
        if self.weights is None:
            order = self._by_shard(order, rng)
            different, copies = -(-self.samples // self.repeats), min(self.repeats, self.samples)
            return np.repeat(order[:different], copies)[: self.samples]
        ends = np.cumsum(self.weights[order])
        ends = np.floor(ends * (self.samples / ends[-1]) + rng.random())
        ends[-1] = self.samples  # whatever rounding says
        order = np.repeat(order, np.diff(ends, prepend=0).astype(np.int64))
        return self._by_shard(rng.permutation(order), rng)

    def _by_shard(self, order: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """The same, with shards one after the other in random order, each spread over the next few; those
        of the last few over the first few."""
        if self.shards is None:
            return order
        count = int(self.shards.max()) + 1
        turns = rng.permutation(count)[self.shards[order]]
        return order[np.argsort((turns + min(_OPEN_SHARDS, count) * rng.random(len(order))) % count)]

    def _key(self, place: int, position: int) -> SampleKey:
        # An image that weights show more than once is augmented again each time.
        copy = place % self.repeats if self.weights is None else place
        return SampleKey(position, derive_seed("sample", self.seed, self.epoch, position, copy))


class Items(Dataset[T]):
    """Items by position: what `load` makes of it."""

    def __init__(self, load: Callable[[int], T]) -> None:
        self.load = load

    def __getitem__(self, position: int) -> T:
        return self.load(position)


class SeededItems(Items[T]):
    """Items by key: what `load` makes of a position, with all generators seeded by the key."""

    def __getitem__(self, key: SampleKey) -> T:  # type: ignore[override]
        if get_worker_info() is None:
            with seeded(key.seed):
                return self.load(key.position)
        seed_generators(key.seed)  # nothing else is sampled in a worker: no need to restore generators
        return self.load(key.position)


class _Images(Dataset[tuple[Tensor, Any]]):
    """The images of a split, transformed, and their labels."""

    def __init__(self, split: Split, transform: Transform, prepare: PrepareImage) -> None:
        self.split, self.transform, self.prepare = split, transform, prepare

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> tuple[Tensor, Any]:
        image, label = self.split.item(position, self.prepare)
        return self.transform(image), label


class _ReadableImages(_Images):
    """The same; in place of an image that cannot be read, why."""

    def __getitem__(self, position: int) -> Any:
        try:
            return super().__getitem__(position)
        except (OSError, ValueError) as error:
            return str(error).partition("\n")[0], position


def _collate_readable(items: list[Any]) -> tuple[Tensor, Tensor, list[tuple[str, int]]]:
    readable = [item for item in items if isinstance(item[0], Tensor)]
    images = torch.stack([image for image, _ in readable]) if readable else torch.empty(0)
    unreadable = [item for item in items if not isinstance(item[0], Tensor)]
    return images, torch.from_numpy(np.array([label for _, label in readable])), unreadable


class EpochLoader(Generic[T]):
    """Batches of a data set, epoch after epoch from the same worker processes.

    Workers take seconds to import torch and to open files: this is done once, not in each epoch.

    Args:
        dataset: items by key.
        workers: processes, 0 for none.
        device: that batches are for. For a GPU they are page-locked, so that copies need not wait.
        collate: makes a batch of items; default: as torch does.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        workers: int,
        device: torch.device = _CPU,
        collate: Callable[[Any], T] | None = None,
    ) -> None:
        self._keys = _Listed()
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._keys,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            collate_fn=collate,
            persistent_workers=workers > 0,
        )

    def batches(self, keys: Iterable[list[Any]]) -> Iterator[T]:
        """The batches of these keys. Those of an earlier call that were not taken are dropped."""
        self._keys.listed = keys
        return iter(self._loader)


class _Listed(Sampler[list[Any]]):
    """Keys that may be replaced between epochs."""

    listed: Iterable[list[Any]] = ()

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.listed)


def train_loader(
    split: Split, transform: Transform, prepare: PrepareImage, workers: int, device: torch.device = _CPU
) -> EpochLoader[Any]:
    """Batches of a split's images by their keys. `prepare` comes before the transform, and gets images before
    they are decoded."""
    return EpochLoader(SeededItems(_Images(split, transform, prepare).__getitem__), workers, device)


def eval_loader(
    split: Split,
    transform: Transform,
    prepare: PrepareImage,
    batch_size: int,
    workers: int,
    device: torch.device = _CPU,
) -> DataLoader[Any]:
    """Batches of a split in its order, as often as they are asked for. `prepare` as for `train_loader`,
    `device` as for `EpochLoader`."""
    return DataLoader(
        _Images(split, transform, prepare),
        batch_size,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )


def readable_loader(
    split: Split,
    transform: Transform,
    prepare: PrepareImage,
    batch_size: int,
    workers: int,
    device: torch.device = _CPU,
) -> DataLoader[Any]:
    """As `eval_loader`; each batch holds the images that can be read, their labels, and for the others why
    not and their positions. A batch may have no image."""
    dataset, pin = _ReadableImages(split, transform, prepare), device.type == "cuda"
    return DataLoader(dataset, batch_size, num_workers=workers, pin_memory=pin, collate_fn=_collate_readable)
