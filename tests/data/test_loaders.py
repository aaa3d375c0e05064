from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from atconv.data.images import PrepareImage
from atconv.data.loaders import EpochBatches, EpochLoader, SampleKey, train_loader
from atconv.data.sources.digits import DigitsSource
from atconv.data.splits import Split
from atconv.engine.batch_plan import BatchPlan, plan_batches
from atconv.engine.config import TrainConfig
from atconv.tasks.classification.augmentation import train_transform
from atconv.tasks.classification.config import ClassificationConfig
from support.tiny import tiny_config


def plan(samples: int, batch: int, total: int, processes: int = 1) -> BatchPlan:
    return plan_batches(TrainConfig(batch_size=batch, base_batch_size=total), samples, processes)


def micro_batches(*args: Any, **kwargs: Any) -> list[list[tuple[int, int]]]:
    batches = EpochBatches(*args, **kwargs)
    listed = list(batches)
    assert len(listed) == len(batches)
    return listed


def positions(batches: list[list[tuple[int, int]]]) -> list[int]:
    return [key[0] for batch in batches for key in batch]


def test_an_epoch_shows_every_image_once() -> None:
    assert sorted(positions(micro_batches(96, plan(96, 8, 32), 0, 0))) == list(range(96))


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 64), st.integers(0, 5))
def test_no_image_comes_twice_in_an_epoch(samples: int, batch: int, total: int, epoch: int) -> None:
    chosen = plan(samples, batch, total)
    shown = positions(micro_batches(samples, chosen, 0, epoch))
    assert len(shown) == len(set(shown)) == chosen.steps_per_epoch * chosen.global_batch_size
    assert len(shown) > samples - chosen.global_batch_size
    assert set(shown) <= set(range(samples))


def test_the_order_depends_on_seed_and_epoch() -> None:
    chosen = plan(64, 8, 8)
    orders = [positions(micro_batches(64, chosen, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert positions(micro_batches(64, chosen, 1, 1)) == orders[-1]


def global_batches(samples: int, processes: int, repeats: int) -> list[set[tuple[int, int]]]:
    """The images of each optimizer step, with the seeds of their augmentation."""
    chosen = plan(samples, 24 // processes // 2, 24, processes)
    ranks = [micro_batches(samples, chosen, 3, 1, rank, repeats) for rank in range(processes)]
    steps = []
    for step in range(chosen.steps_per_epoch):
        own = slice(step * chosen.accumulate, (step + 1) * chosen.accumulate)
        keys = [key for rank in ranks for batch in rank[own] for key in batch]
        assert len(keys) == len(set(keys)) == 24
        steps.append(set(keys))
    return steps


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("processes", [2, 4])
def test_a_batch_holds_the_same_images_however_many_processes_share_it(processes: int, repeats: int) -> None:
    assert global_batches(100, processes, repeats) == global_batches(100, 1, repeats)


@settings(deadline=None)
@given(st.integers(8, 100), st.integers(1, 4), st.integers(1, 3), st.data())
def test_starting_later_leaves_out_the_first_micro_batches(
    samples: int, processes: int, repeats: int, data: st.DataObject
) -> None:
    assume(samples >= 8 * processes)
    chosen = plan(samples, 2, 8, processes)
    rank = data.draw(st.integers(0, processes - 1))
    start = data.draw(st.integers(0, chosen.steps_per_epoch * chosen.accumulate))
    every = micro_batches(samples, chosen, 0, 2, rank, repeats)
    assert micro_batches(samples, chosen, 0, 2, rank, repeats, start) == every[start:]


def test_repeats_are_copies_with_their_own_augmentation_in_an_epoch_of_the_same_length() -> None:
    keys = [key for batch in micro_batches(60, plan(60, 12, 12), 0, 0, repeats=3) for key in batch]
    assert len(keys) == 60
    assert len({position for position, _ in keys}) == 20
    assert len({seed for _, seed in keys}) == 60
    for batch in micro_batches(60, plan(60, 12, 12), 0, 0, repeats=3):
        assert len({position for position, _ in batch}) == 4, "the copies of an image share a batch"


def test_an_augmentation_has_another_seed_in_another_epoch() -> None:
    first, second = (
        dict(k for b in micro_batches(16, plan(16, 8, 8), 0, epoch) for k in b) for epoch in (0, 1)
    )
    assert all(first[position] != second[position] for position in range(16))


def loader_of(split: Split, config: ClassificationConfig, samples: int, start: int = 0) -> Any:
    plan = plan_batches(config, samples, 1)
    listed = EpochBatches(samples, plan, config.seed, 0, repeats=config.repeats, start=start)
    prepare = PrepareImage(config.in_chans)
    return train_loader(split, train_transform(config), prepare, config.workers).batches(listed)


def batches(workers: int, start: int = 0, **changes: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = {"rotate": 20.0, "hflip": 0.5, "erase_prob": 0.5, "auto_augment": "rand-m9-mstd0.5"}
    config = tiny_config(
        workers=workers, batch_size=4, base_batch_size=4, crop_scale=(0.1, 1.0), **(random | changes)
    )
    split = Split(DigitsSource(), list(range(24)))
    return list(loader_of(split, config, 24, start))


@pytest.fixture(scope="module")
def loaded() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return batches(workers=0)


def assert_equal(
    a: list[tuple[torch.Tensor, torch.Tensor]], b: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    assert len(a) == len(b)
    for (images_a, labels_a), (images_b, labels_b) in zip(a, b, strict=True):
        assert torch.equal(labels_a, labels_b)
        assert torch.equal(images_a, images_b)


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_are_the_same_whatever_the_number_of_workers(loaded: Any, workers: int) -> None:
    assert_equal(batches(workers), loaded)


def test_samples_are_the_same_from_the_middle_on(loaded: Any) -> None:
    assert_equal(batches(2, start=3), loaded[3:])


def test_samples_do_not_depend_on_the_generators_of_the_process(loaded: Any) -> None:
    torch.manual_seed(12345)
    assert_equal(batches(0), loaded)


def test_loading_leaves_the_generators_of_the_process_alone() -> None:
    before = torch.get_rng_state()
    images = Split(DigitsSource(), [0, 1, 2, 3])
    config = tiny_config(batch_size=4, base_batch_size=4, rotate=20.0)
    loader = train_loader(images, train_transform(config), PrepareImage(config.in_chans), workers=0)
    loader._loader.dataset[SampleKey(2, 7)]
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_samples(loaded: Any) -> None:
    assert not torch.equal(batches(0, seed=1)[0][0], loaded[0][0])


def test_labels_are_those_of_the_images() -> None:
    plain = {"rotate": 0.0, "hflip": 0.0, "erase_prob": 0.0, "auto_augment": None, "crop_ratio": (1.0, 1.0)}
    config = tiny_config(batch_size=4, base_batch_size=4, crop_scale=(1.0, 1.0), **plain)
    source = DigitsSource()
    split = Split(source, list(range(100, 124)))
    known = {bytes(source.read(i, "L").tobytes()): source.labels[i] for i in split.indices}
    loader = loader_of(split, config, 24)
    for images, labels in loader:
        for image, label in zip(images, labels, strict=True):
            pixels = ((image[0] * 0.5 + 0.5) * 255).round().to(torch.uint8).numpy().tobytes()
            assert known[pixels] == label


class _Processes(Dataset[tuple[int, int]]):
    """Positions, and the process that read them."""

    def __getitem__(self, key: SampleKey) -> tuple[int, int]:
        return key.position, os.getpid()


def test_workers_stay_from_epoch_to_epoch() -> None:
    loader = EpochLoader[list[torch.Tensor]](_Processes(), workers=2)
    listed = [list(EpochBatches(8, plan(8, 2, 2), 0, epoch)) for epoch in range(3)]
    next(loader.batches(listed[0]))  # the rest is not taken
    epochs = [list(loader.batches(keys)) for keys in listed[1:]]
    for keys, taken in zip(listed[1:], epochs, strict=True):
        assert [positions.tolist() for positions, _ in taken] == [
            [k.position for k in batch] for batch in keys
        ]
    processes = [{int(pid) for _, pids in taken for pid in pids} for taken in epochs]
    assert processes[0] == processes[1]
    assert len(processes[0]) == 2
    assert os.getpid() not in processes[0]
