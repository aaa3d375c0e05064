"""Measures on cases whose values are known."""

from __future__ import annotations

import math

import pytest
import torch

from atconv.analysis.measures import kernel_shape, redundancy, routing_variance

LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize("count", [1, 4])
def test_a_static_kernel_has_no_routing_variance(count: int) -> None:
    measured = routing_variance(torch.randn(1, 5, 3, 3).expand(count, -1, -1, -1), LABELS)
    assert measured.total == pytest.approx(0, abs=1e-25)
    assert measured.share_between == 0
    assert routing_variance(torch.zeros(1, 2, 3, 3), LABELS).share_between == 0


def test_variance_is_split_into_between_and_within_classes() -> None:
    by_class = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None, None, None].expand(4, 2, 3, 3)
    measured = routing_variance(by_class, LABELS)
    assert (measured.total, measured.share_between) == (1, 1)
    inside = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None, None].expand(4, 2, 3, 3)
    measured = routing_variance(inside, LABELS)
    assert (measured.total, measured.share_between) == (1, 0)
    # A tenth of the sum of squares lies within classes, on 2 of 3 degrees of freedom.
    both = routing_variance(3 * by_class + inside, LABELS)
    assert both.share_between == pytest.approx(1 - (0.1 / 2) / (1 / 3))
    assert both.total == pytest.approx(1)


def test_variance_is_in_units_of_the_mean_square() -> None:
    kernels = torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 2, 3, 3)
    # Variance 1 around a mean of 2, mean square 5.
    assert routing_variance(kernels, torch.tensor([0, 1])).total == pytest.approx(1 / 5)


def test_classes_explain_nothing_of_independent_kernels() -> None:
    labels = torch.arange(64) % 40  # most classes have a single image
    measured = routing_variance(torch.randn(64, 500, 3, 3), labels)
    assert measured.share_between == pytest.approx(0, abs=0.02)
    assert measured.total == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [5, 5, 5, 5]])
def test_the_share_is_unknown_without_two_classes_or_two_images_of_one(labels: list[int]) -> None:
    measured = routing_variance(torch.randn(4, 3, 3, 3), torch.tensor(labels))
    assert measured.share_between is None
    assert measured.total > 0


def test_variance_does_not_depend_on_the_size_of_the_weights() -> None:
    kernels = torch.randn(4, 3, 3, 3)
    variance, scaled = routing_variance(kernels, LABELS), routing_variance(100 * kernels, LABELS)
    assert variance.total == pytest.approx(scaled.total, rel=1e-6)
    assert variance.share_between == pytest.approx(scaled.share_between, rel=1e-6)
    with pytest.raises(ValueError, match="3 kernels take 3 labels, got 4"):
        routing_variance(kernels[:3], LABELS)


def test_shapes_of_known_kernels() -> None:
    flat, single = torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    single[0, 0, 1, 1] = -2
    assert kernel_shape(flat).entropy == pytest.approx(1)
    assert math.isnan(kernel_shape(flat).kurtosis)
    measured = kernel_shape(single)
    assert (measured.entropy, measured.negative_share) == (pytest.approx(0, abs=1e-12), pytest.approx(1 / 9))
    # One of nine stands out: a Bernoulli variable with p = 1/9 has kurtosis 3 + (1 − 6p(1 − p)) / (p(1 − p)).
    p = 1 / 9
    assert measured.kurtosis == pytest.approx(3 + (1 - 6 * p * (1 - p)) / (p * (1 - p)))
    lopsided = torch.tensor([3.0, -1.0, 0, 0, 0, 0, 0, 0, 0]).view(1, 1, 3, 3)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(9)
    assert kernel_shape(lopsided).entropy == pytest.approx(entropy)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, 0, 0, 0, 0]).view(1, 1, 3, 3)
    assert kernel_shape(signs).negative_share == pytest.approx(2 / 9)
    assert kernel_shape(torch.randn(400, 4, 5, 5)).kurtosis == pytest.approx(3 * 24 / 26, rel=0.02)
    with pytest.raises(ValueError, match="1 × 1 have no shape"):
        kernel_shape(torch.ones(1, 1, 1, 1))


def test_identical_channels_are_fully_redundant() -> None:
    channel = torch.randn(2, 1, 4, 4)
    measured = redundancy(torch.cat([channel, -2 * channel, channel + 3], 1))
    assert measured.cosine == pytest.approx(1)
    assert measured.effective_rank == pytest.approx(1 / 3, rel=1e-4)
    assert measured.samples_per_channel == pytest.approx(32 / 3)


def test_orthogonal_channels_are_not_redundant() -> None:
    waves = torch.stack([torch.cos(2 * math.pi * k * torch.arange(16) / 16) for k in (1, 2, 3)])
    measured = redundancy(waves.view(1, 3, 4, 4))
    assert measured.cosine == pytest.approx(0, abs=1e-6)
    assert measured.effective_rank == pytest.approx(1, rel=1e-6)
    # Singular values 3, 1 and 1 of the sizes: shares 0.6, 0.2 and 0.2.
    sizes = redundancy((torch.tensor([3.0, 1.0, 1.0])[:, None] * waves).view(1, 3, 4, 4))
    rank = math.exp(-(0.6 * math.log(0.6) + 0.4 * math.log(0.2)))
    assert sizes.effective_rank == pytest.approx(rank / 3, rel=1e-6)
    with pytest.raises(ValueError, match="one channel"):
        redundancy(torch.randn(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"a map B C H W or tokens B N C, got \(2, 9\)"):
        redundancy(torch.randn(2, 9))


def test_tokens_have_the_redundancy_of_their_map() -> None:
    features = torch.randn(2, 3, 4, 4)
    assert redundancy(features.flatten(2).mT) == redundancy(features)
