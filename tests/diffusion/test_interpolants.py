"""Interpolants: the release's numbers, and the relations between their parts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atconv.diffusion.interpolants import GVP, VP, Interpolant, Linear, Prediction, make_interpolant
from support.gaussian import Gaussian
from support.helpers import assert_close, under
from support.tiny_sit import transport

INTERPOLANTS = [Linear(), GVP(), VP()]
KINDS: list[Prediction] = ["velocity", "score", "noise"]
each_interpolant = pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda kind: kind.name)


def toy_field(x: Tensor, t: Tensor) -> Tensor:
    matrix = transport()["model_matrix"]
    return torch.einsum("ij,bjhw->bihw", matrix, x) + 0.1 * torch.sin(3 * t)[:, None, None, None]


@each_interpolant
def test_interpolant_loss_and_score_are_those_of_the_release(interpolant: Interpolant) -> None:
    tensors = transport()
    expected = under(f"{type(interpolant).__name__}.", tensors)
    x, velocity = interpolant.interpolate(tensors["data"], tensors["noise"], tensors["t"])
    assert_close(x, expected["xt"], 1e-5)
    assert_close(velocity, expected["target_velocity"], 1e-5)
    loss = ((toy_field(x, tensors["t"]) - velocity) ** 2).flatten(1).mean(1)
    assert_close(loss, expected["loss"], 1e-5)
    score = interpolant.score_from_velocity(velocity, x, tensors["t"])
    assert_close(score, expected["score_from_velocity"], 1e-5)


@each_interpolant
def test_derivatives_are_those_of_autograd(interpolant: Interpolant) -> None:
    t = torch.linspace(0, 0.999, 57, dtype=torch.float64, requires_grad=True)
    for function, derivative in (
        (interpolant.alpha, interpolant.d_alpha),
        (interpolant.sigma, interpolant.d_sigma),
    ):
        (expected,) = torch.autograd.grad(function(t).sum(), t)
        assert_close(derivative(t), expected, 1e-12)


@each_interpolant
def test_noise_becomes_data(interpolant: Interpolant) -> None:
    first, last = torch.tensor(0.0), torch.tensor(1.0)
    residue = math.exp(-5.025) if interpolant.name == "vp" else 0.0  # VP never quite forgets the data
    assert float(interpolant.alpha(first)) == pytest.approx(residue, rel=1e-5, abs=1e-7)
    assert float(interpolant.sigma(first)) == pytest.approx(math.sqrt(1 - residue**2), abs=1e-6)
    assert float(interpolant.alpha(last)) == pytest.approx(1, abs=1e-6)
    assert float(interpolant.sigma(last)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("interpolant", [GVP(), VP()], ids=lambda kind: kind.name)
def test_variance_is_preserved(interpolant: Interpolant) -> None:
    t = torch.linspace(0, 1, 101)
    torch.testing.assert_close(
        interpolant.alpha(t) ** 2 + interpolant.sigma(t) ** 2, torch.ones(101), rtol=0, atol=1e-6
    )


def test_sigma_of_vp_is_exact_where_little_noise_is_left() -> None:
    t = 1 - torch.tensor([1e-3, 1e-4, 1e-5], dtype=torch.float64)
    assert_close(VP().sigma(t.float()), VP().sigma(t.float().double()), 1e-6)


@settings(deadline=None)
@given(interpolant=st.sampled_from(INTERPOLANTS), ratio=st.floats(1e-3, 100))
def test_the_time_of_a_ratio_has_that_ratio(interpolant: Interpolant, ratio: float) -> None:
    t = interpolant.time_of_ratio(torch.tensor(ratio, dtype=torch.float64))
    assert 0 <= float(t) <= 1
    assert float(interpolant.sigma(t) / interpolant.alpha(t)) == pytest.approx(ratio, rel=1e-9)


@settings(deadline=None)
@given(interpolant=st.sampled_from(INTERPOLANTS), t=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_velocity_and_score_are_each_others_inverse(interpolant: Interpolant, t: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x, velocity = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, generator=rng)
    times = torch.full((3,), t, dtype=torch.float64)
    score = interpolant.score_from_velocity(velocity, x, times)
    assert_close(interpolant.velocity_from_score(score, x, times), velocity, 1e-9)


@each_interpolant
@pytest.mark.parametrize("kind", KINDS)
def test_each_prediction_of_one_distribution_is_the_same_velocity(
    interpolant: Interpolant, kind: Prediction
) -> None:
    x, t = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.linspace(0.02, 0.98, 5, dtype=torch.float64)
    predicted = Gaussian(interpolant, kind)(x, t)
    velocity = Gaussian(interpolant, "velocity")(x, t)
    assert_close(interpolant.to_velocity(predicted, kind, x, t), velocity, 1e-9)
    assert_close(interpolant.score_from_velocity(velocity, x, t), Gaussian(interpolant, "score")(x, t), 1e-9)


@each_interpolant
def test_the_noise_itself_gives_the_velocity_of_its_own_line(interpolant: Interpolant) -> None:
    data, noise = torch.randn(2, 4, 2, 3, 3, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    x, velocity = interpolant.interpolate(data, noise, t)
    assert_close(interpolant.to_velocity(noise, "noise", x, t), velocity, 1e-9)


@each_interpolant
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [False, True])
def test_everything_is_finite_over_the_interval_ends_included(
    interpolant: Interpolant, kind: Prediction, sampling: bool
) -> None:
    low, high = interpolant.interval(kind, sampling)
    assert 0 <= low < 0.01
    assert 0.99 < high <= 1
    if kind != "velocity":
        assert low > 0
        assert high < 1
    t = torch.tensor([low, (low + high) / 2, high])
    x, velocity = interpolant.interpolate(torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2), t)
    parts = [velocity, interpolant.to_velocity(torch.randn(3, 1, 2, 2), kind, x, t)]
    assert all(part.isfinite().all() for part in parts)


def test_intervals_are_the_whole_line_where_nothing_is_singular() -> None:
    for interpolant in (Linear(), GVP()):
        assert (
            interpolant.interval("velocity", sampling=False)
            == interpolant.interval("velocity", sampling=True)
            == (0, 1)
        )
    assert VP().interval("velocity", sampling=False) == (0, 1 - 1e-5)
    assert VP().interval("velocity", sampling=True) == (0, 1 - 1e-3)


def test_an_unknown_interpolant_is_rejected() -> None:
    with pytest.raises(ValueError, match="no interpolant 'cosine'; there are linear, gvp, vp"):
        make_interpolant("cosine")
