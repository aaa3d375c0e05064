from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atconv.data.loaders import EpochBatches
from atconv.engine.batch_plan import plan_batches
from atconv.engine.config import TrainConfig


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**({"batch_size": 64, "base_batch_size": 64, "lr": 1e-3} | changes))


def test_the_global_batch_of_a_recipe_is_met_by_accumulation() -> None:
    plan = plan_batches(config(batch_size=128, base_batch_size=4096, lr=4e-3), 1_281_167, processes=4)
    assert (plan.micro_batch, plan.accumulate, plan.processes) == (128, 8, 4)
    assert plan.global_batch_size == 4096
    assert plan.steps_per_epoch == 312
    assert plan.lr == 4e-3
    assert "4096 = 128 images × 4 process(es) × 8 micro-batch(es), learning rate 0.004" in plan.message


def test_another_global_batch_scales_the_learning_rate_and_says_so() -> None:
    plan = plan_batches(config(batch_size=32, base_batch_size=64, global_batch_size=256), 10_000, processes=1)
    assert (plan.global_batch_size, plan.accumulate) == (256, 8)
    assert plan.lr == pytest.approx(4e-3)
    assert "lr is for a batch of 64: 0.001 → 0.004" in plan.message


def test_processes_that_hold_more_than_the_global_batch_take_fewer_images_each() -> None:
    plan = plan_batches(config(batch_size=64, base_batch_size=64), 10_000, processes=4)
    assert (plan.micro_batch, plan.accumulate, plan.lr) == (16, 1, 1e-3)


def test_a_set_smaller_than_a_batch_makes_the_batch_smaller_and_says_so() -> None:
    plan = plan_batches(config(batch_size=64, base_batch_size=64), 10, processes=1)
    assert (plan.global_batch_size, plan.steps_per_epoch) == (10, 1)
    assert plan.lr == pytest.approx(1e-3 * 10 / 64)
    assert "only 10 training images for a batch of 64" in plan.message


def test_mixing_makes_an_odd_batch_even() -> None:
    assert (
        plan_batches(config(batch_size=33, base_batch_size=33), 100, processes=1, even=True).micro_batch == 32
    )
    assert plan_batches(config(batch_size=33, base_batch_size=33), 100, processes=1).micro_batch == 33


@pytest.mark.parametrize(
    ("samples", "processes", "even"), [(0, 1, False), (3, 4, False), (1, 1, True), (3, 2, True)]
)
def test_too_few_images_for_the_processes_raise(samples: int, processes: int, even: bool) -> None:
    with pytest.raises(ValueError, match=f"{samples} training images are too few.*{'pairs' if even else ''}"):
        plan_batches(config(), samples, processes, even)


sizes = st.integers(1, 300)


@settings(deadline=None)
@given(sizes, sizes, st.none() | sizes, st.integers(0, 3000), st.integers(1, 8), st.booleans())
def test_every_plan_adds_up(
    batch_size: int,
    base_batch_size: int,
    global_batch_size: int | None,
    samples: int,
    processes: int,
    even: bool,
) -> None:
    assume(samples // processes >= (2 if even else 1))
    options = config(
        batch_size=batch_size, base_batch_size=base_batch_size, global_batch_size=global_batch_size
    )
    plan = plan_batches(options, samples, processes, even)
    assert plan.global_batch_size == plan.micro_batch * plan.accumulate * processes
    assert plan.micro_batch <= max(batch_size, 2 if even else 1)
    assert plan.steps_per_epoch == samples // plan.global_batch_size >= 1
    assert plan.lr == pytest.approx(options.lr * plan.global_batch_size / base_batch_size)
    assert not even or plan.micro_batch % 2 == 0


@settings(deadline=None)
@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 8))
def test_a_total_batch_that_divides_is_met_exactly(micro: int, accumulate: int, processes: int) -> None:
    total = micro * accumulate * processes
    plan = plan_batches(config(batch_size=micro, base_batch_size=total), 10 * total, processes)
    assert (plan.micro_batch, plan.accumulate, plan.global_batch_size) == (micro, accumulate, total)


@pytest.mark.parametrize(("samples", "left"), [(81, 17), (64, 0), (128, 0), (130, 2)])
def test_images_that_fill_no_batch_are_counted(samples: int, left: int) -> None:
    plan = plan_batches(config(), samples, processes=1)
    shown = [key.position for batch in EpochBatches(samples, plan, 0, 0) for key in batch]
    assert len(set(shown)) == samples - left
    text = f"leaves out {left} of {samples} images" if left else "learning rate 0.001"
    assert plan.message.endswith(f"{text}, others each time: they fill no batch" if left else text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("base_batch_size", -1),
        ("global_batch_size", 0),
        ("patience", 0),
        ("checkpoint_steps", 0),
        ("lr", 0.0),
        ("lr", 10**400),
        ("ema_decay", 1.0),
        ("workers", -1),
        ("warmup_epochs", 31.0),
    ],
)
def test_an_option_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        config(**{name: value})


def test_a_batch_that_batch_size_does_not_divide_is_met_by_smaller_micro_batches() -> None:
    plan = plan_batches(config(batch_size=64, base_batch_size=64, global_batch_size=100), 1000, processes=1)
    assert (plan.micro_batch, plan.accumulate, plan.global_batch_size) == (50, 2, 100)


def test_a_batch_that_cannot_be_met_says_what_was_asked_for() -> None:
    plan = plan_batches(config(batch_size=64, base_batch_size=101), 1000, processes=1)
    assert plan.global_batch_size in (100, 102)
    assert "(101 asked for)" in plan.message
