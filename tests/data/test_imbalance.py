"""Imbalanced classes: weights of classes and images by their formulas, and what is reported of them."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atconv.data.imbalance import Occurrences, class_weights, image_weights, log_classes
from atconv.data.loaders import EpochBatches
from atconv.engine.batch_plan import BatchPlan

LABELS = [0] * 60 + [1] * 6 + [2] * 3
NAMES = ["ant", "bee", "cow"]
SINGLE = Occurrences.of_labels(NAMES, LABELS)
BOXES = Occurrences.of_counts(NAMES, [{0: 5}, {0: 1, 1: 2}, {}, {2: 1, 0: 4}], "box")
PIXELS = Occurrences.of_counts(
    NAMES, [{0: 9_000}, {0: 9_000, 1: 980, 2: 20}, {0: 9_000, 1: 1_960, 2: 40}], "pixel"
)


def epoch(weights: np.ndarray | None, samples: int, number: int = 0, start: int = 0) -> list[int]:
    plan = BatchPlan(1, 1, 1, samples, 0.1, "")
    batches = EpochBatches(samples, plan, seed=3, epoch=number, start=start, weights=weights)
    return [key.position for batch in batches for key in batch]


def test_inverse_weights_are_inverse_to_what_there_is() -> None:
    assert class_weights(SINGLE, "inverse", 0.9) == pytest.approx([69 / 180, 69 / 18, 69 / 9])
    assert class_weights(BOXES, "inverse", 0.9) == pytest.approx([13 / 30, 13 / 6, 13 / 3])


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999])
@pytest.mark.parametrize(
    ("occurrences", "amounts"),
    [(SINGLE, [60, 6, 3]), (BOXES, [10, 2, 1]), (PIXELS, [2.7, 0.294, 0.006])],
    ids=["images", "boxes", "pixels"],
)
def test_effective_weights_are_those_of_the_paper(
    occurrences: Occurrences, amounts: list[float], beta: float
) -> None:
    effective = [(1 - beta**n) / (1 - beta) for n in amounts]
    weights = class_weights(occurrences, "effective", beta)
    assert weights is not None
    assert weights * effective == pytest.approx(np.full(3, weights[0] * effective[0]))
    assert (weights * amounts).sum() / sum(amounts) == pytest.approx(1)


@pytest.mark.parametrize("occurrences", [SINGLE, BOXES, PIXELS], ids=["images", "boxes", "pixels"])
def test_effective_weights_go_from_equal_to_inverse(occurrences: Occurrences) -> None:
    inverse = class_weights(occurrences, "inverse", 0.0)
    assert class_weights(occurrences, "effective", 0.0) == pytest.approx(np.ones(3))
    assert class_weights(occurrences, "effective", 1 - 1e-9) == pytest.approx(inverse, rel=1e-5)


def test_a_class_without_images_has_a_finite_weight() -> None:
    absent = Occurrences.of_labels([*NAMES, "dog"], LABELS)
    for kind in ("inverse", "effective"):
        assert np.isfinite(class_weights(absent, kind, 0.999)).all()  # type: ignore[arg-type]


def test_repeat_factors_are_those_of_lvis() -> None:
    shares, threshold = np.array([60, 6, 3]) / 69, 0.1
    expected = np.maximum(1, np.sqrt(threshold / shares))[LABELS]
    assert image_weights(SINGLE, "repeat_factor", threshold) == pytest.approx(expected)
    # By the rarest class of an image; one without objects counts as the most frequent class does.
    assert image_weights(BOXES, "repeat_factor", 1.0) == pytest.approx(
        [(4 / 3) ** 0.5, 2.0, (4 / 3) ** 0.5, 2.0]
    )


def test_without_a_sampler_there_are_no_weights() -> None:
    assert image_weights(SINGLE, "shuffle") is None
    assert sorted(epoch(None, 69)) == list(range(69))


def test_a_balanced_epoch_shows_every_class_equally_often() -> None:
    weights = image_weights(SINGLE, "balanced")
    for number in range(3):
        shown = epoch(weights, 69, number)
        counts = Counter(LABELS[position] for position in shown)
        assert len(shown) == 69
        assert counts[1] == pytest.approx(23, abs=6)
        assert counts[2] == pytest.approx(23, abs=3)
    assert epoch(weights, 69, 0) != epoch(weights, 69, 1)


@settings(max_examples=50, deadline=None, database=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60), st.integers(0, 100))
def test_an_image_is_shown_as_often_as_its_share_says(weights: list[float], number: int) -> None:
    shown, count = Counter(epoch(np.array(weights), len(weights), number)), len(weights)
    assert sum(shown.values()) == count
    for position, weight in enumerate(weights):
        expected = weight / sum(weights) * count
        assert expected - 1 - 1e-6 < shown[position] < expected + 1 + 1e-6


@pytest.mark.parametrize("start", [0, 1, 40, 69])
def test_an_epoch_is_entered_in_its_middle(start: int) -> None:
    weights = image_weights(SINGLE, "balanced")
    assert epoch(weights, 69, 5, start) == epoch(weights, 69, 5)[start:]


def test_an_image_that_is_shown_again_is_augmented_again() -> None:
    plan = BatchPlan(1, 1, 1, 69, 0.1, "")
    keys = [key for [key] in EpochBatches(69, plan, 0, 0, weights=image_weights(SINGLE, "balanced"))]
    assert len({key.position for key in keys}) < len({key.seed for key in keys}) == 69


@pytest.mark.parametrize(
    ("occurrences", "level", "line"),
    [
        (Occurrences.of_labels(NAMES, [0, 1, 2] * 20), "INFO", "3 classes, 20 images each"),
        (
            Occurrences.of_labels(NAMES, [0] * 20 + [1] * 11 + [2] * 10),
            "INFO",
            "3 classes, images to train on: 20 ant, 11 bee, 10 cow",
        ),
        (SINGLE, "WARNING", "training images are imbalanced: 60 ant, 6 bee, 3 cow. Do something"),
        (SINGLE, "WARNING", "in fewer than 10 training images: bee (6), cow (3)"),
        (BOXES, "WARNING", "training boxes are imbalanced: 10 ant, 2 bee, 1 cow. Do something"),
        (
            Occurrences.of_counts(NAMES, [{0: 50, 1: 30, 2: 20}] * 10, "pixel"),
            "INFO",
            "3 classes, pixels to train on: 50 % ant, 30 % bee, 20 % cow",
        ),
        (
            Occurrences.of_counts(NAMES, [{0: 950, 1: 36, 2: 14}] * 10, "pixel"),
            "WARNING",
            "training pixels are imbalanced: 95 % ant, 3.6 % bee, 1.4 % cow. Do something",
        ),
    ],
    ids=["balanced", "uneven", "imbalanced", "rare", "boxes", "pixels", "imbalanced pixels"],
)
def test_what_there_is_of_each_class_is_reported(
    occurrences: Occurrences, level: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "atconv"):
        log_classes({"train": occurrences}, "Do something")
    assert (level, line) in [(record.levelname, record.message) for record in caplog.records]


def test_classes_that_a_split_lacks_are_named(caplog: pytest.LogCaptureFixture) -> None:
    val = Occurrences.of_labels(NAMES, [0, 0, 1])
    log_classes({"train": SINGLE, "val": val}, "")
    assert "in no image of the val split: cow" in caplog.text
    assert "of the train split" not in caplog.text


def test_of_many_classes_the_largest_and_smallest_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    labels = [label for label in range(30) for _ in range(label + 10)]
    log_classes({"train": Occurrences.of_labels([f"c{i}" for i in range(30)], labels)}, "")
    assert "imbalanced: 39 c29, 38 c28, 37 c27, 36 c26, 35 c25, …, 14 c4, 13 c3, 12 c2, 11 c1, 10 c0" in (
        caplog.text
    )
