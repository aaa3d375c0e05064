"""Samplers: the release's end points, data whose answer is known, batches, guidance, likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atconv.diffusion.interpolants import GVP, VP, Linear, Path, Prediction
from atconv.diffusion.samplers import (
    ODE_ADAPTIVE,
    ODE_FIXED,
    SDE,
    Field,
    ImageNoise,
    SamplerConfig,
    bits_per_dim,
    log_likelihood,
    sample,
)
from support.gaussian import MEAN, STD, Gaussian
from support.helpers import assert_close
from support.tiny_sit import tiny_sit, transport

CPU = torch.device("cpu")
PATHS = [Linear(), GVP(), VP()]
KINDS: list[Prediction] = ["velocity", "score", "noise"]
DIFFUSIONS = ["sigma", "constant", "sbdm", "linear", "decreasing", "increasing_decreasing"]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)


def noise_of(count: int = 4, shape: tuple[int, int, int] = (1, 48, 48), seed: int = 0) -> ImageNoise:
    return ImageNoise(seed, range(count), shape, CPU)


class GivenNoise(ImageNoise):
    """A starting point from elsewhere."""

    def __init__(self, first: Tensor) -> None:
        self.first = first

    def draw(self) -> Tensor:
        return self.first


class Toy(nn.Module):
    """v(x, t) = M x + 0.1·sin 3t, as in the reference file."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        mixed = torch.einsum("ij,bjhw->bihw", transport()["model_matrix"], x)
        return mixed + 0.1 * torch.sin(3 * t)[:, None, None, None]


# ODE.


@pytest.mark.parametrize("sampler", ["euler", "heun3", "dopri5"])
def test_end_points_are_those_of_the_release(sampler: str) -> None:
    tensors = transport()
    config = SamplerConfig(sampler=sampler, steps=10, atol=1e-6, rtol=1e-3)
    ended = sample(Field(Toy(), Linear(), "velocity", None), GivenNoise(tensors["noise"]), config)
    assert_close(ended, tensors[f"ode.{sampler}"], 1e-5)


# Steps (or tolerance), and greatest error of any number in units of the data's deviation.
ODE_ERRORS = {
    "euler": (100, 0.06),
    "heun": (100, 5e-3),
    "midpoint": (50, 5e-3),
    "explicit_adams": (200, 5e-3),
}


@each_path
@pytest.mark.parametrize("sampler", [*ODE_FIXED, *ODE_ADAPTIVE])
def test_every_ode_sampler_takes_noise_to_where_it_belongs(path: Path, sampler: str) -> None:
    steps, error = ODE_ERRORS.get(sampler, (40, 1e-2 if sampler in ODE_ADAPTIVE else 1e-3))
    model, noise = Gaussian(path), noise_of(2, (1, 8, 8))
    config = SamplerConfig(sampler=sampler, steps=steps, atol=1e-5, rtol=1e-5)
    ended = sample(Field(model, path, "velocity", None), noise, config)
    start, end = path.interval("velocity", sampling=True)
    expected = model.transported(noise_of(2, (1, 8, 8)).draw(), start, end)
    assert float((ended - expected).abs().max()) <= error * STD


class Clock(nn.Module):
    """Notes the times it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.times.append(float(t[0]))
        return torch.sin(9 * t)[:, None, None, None] - x


@each_path
@pytest.mark.parametrize("kind", ["velocity", "noise"])
@pytest.mark.parametrize(
    "sampler",
    [
        "heun",
        "rk4",
        "sde_heun",
        "dopri5",
        "bosh3",
    ],
)
def test_the_model_is_asked_for_no_time_outside_the_interval(path: Path, kind: Any, sampler: str) -> None:
    if sampler in ODE_ADAPTIVE and path.interval(kind, sampling=True) == (0.0, 1.0):
        pytest.skip("nothing is singular there, and the release's end points are met only so")
    model = Clock()
    sample(Field(model, path, kind, None), noise_of(1, (1, 4, 4)), SamplerConfig(sampler=sampler, steps=9))
    start, end = path.interval(kind, sampling=True)
    assert min(model.times) >= start - 1e-6
    assert max(model.times) <= end + 1e-6


@each_path
@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_is_sampled_alike(path: Path, kind: Prediction) -> None:
    model, noise = Gaussian(path, kind), noise_of(2, (1, 8, 8))
    ended = sample(Field(model, path, kind, None), noise, SamplerConfig(sampler="heun", steps=200))
    start, end = path.interval(kind, sampling=True)
    expected = model.transported(noise_of(2, (1, 8, 8)).draw(), start, end)
    assert float((ended - expected).abs().max()) <= 0.02 * STD


def test_steps_are_steps_and_not_points() -> None:
    tensors = transport()
    ended = sample(
        Field(Toy(), Linear(), "velocity", None),
        GivenNoise(tensors["noise"]),
        SamplerConfig(sampler="euler", steps=1),
    )
    mixed = torch.einsum("ij,bjhw->bihw", tensors["model_matrix"], tensors["noise"])
    assert_close(ended, tensors["noise"] + mixed, 1e-6)  # sin 0 = 0


# SDE.


@each_path
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("sampler", SDE)
def test_every_sde_keeps_the_mean_and_deviation_of_the_path(path: Path, diffusion: Any, sampler: str) -> None:
    model, t = Gaussian(path), torch.tensor(0.96)
    config = SamplerConfig(sampler=sampler, steps=200, diffusion=diffusion, last_step="none")
    ended = sample(Field(model, path, "velocity", None), noise_of(), config)
    assert ended.isfinite().all()
    # 9216 numbers: the standard error of the mean is 1 %, that of the deviation 0.7 %.
    deviation = float(model.variance(t).sqrt())
    assert float(ended.mean()) == pytest.approx(float(path.alpha(t)) * MEAN, abs=0.04 * deviation)
    assert float(ended.std()) == pytest.approx(deviation, rel=0.05)


@each_path
@pytest.mark.parametrize("sampler", SDE)
def test_sdes_sample_what_predicts_score_or_noise(path: Path, sampler: str) -> None:
    config = SamplerConfig(sampler=sampler, steps=200, last_step="tweedie")
    for kind in ("score", "noise"):
        ended = sample(Field(Gaussian(path, kind), path, kind, None), noise_of(1), config)
        assert float(ended.mean()) == pytest.approx(MEAN, abs=0.1 * STD)


@each_path
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler"])
def test_last_steps_start_where_the_sde_without_one_ends(path: Path, diffusion: Any, last_step: Any) -> None:
    model = Gaussian(path)

    def ended(last: Any) -> Tensor:
        config = SamplerConfig(sampler="sde_euler", steps=20, diffusion=diffusion, last_step=last)
        return sample(Field(model, path, "velocity", None), noise_of(1, (1, 8, 8)), config)

    before, t, size = ended("none"), torch.tensor(0.96), 0.04
    velocity = model(before, t[None])
    sigma = path.sigma(t)
    strength = {
        "sigma": sigma,
        "constant": torch.tensor(1.0),
        "sbdm": path.d_alpha(t) / path.alpha(t) * sigma**2 - sigma * path.d_sigma(t),
        "linear": 1 - t,
        "decreasing": ((torch.cos(math.pi * t) + 1) / 2) ** 2,
        "increasing_decreasing": torch.sin(math.pi * t) ** 2,
    }[diffusion]
    expected = {
        "mean": before + size * (velocity + strength * model.score(before, t)),
        "tweedie": model.expected_data(before, t),
        "euler": before + size * velocity,
    }[last_step]
    torch.testing.assert_close(ended(last_step), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", ["sde_euler", "sde_heun"])
def test_one_step_of_an_sde_is_its_formula(sampler: str) -> None:
    path, model = Linear(), Gaussian(Linear())
    config = SamplerConfig(
        sampler=sampler,
        steps=1,
        last_step="none",
        diffusion="constant",
        diffusion_scale=0.5,
        last_step_size=0.2,
    )
    ended = sample(Field(model, path, "velocity", None), noise_of(1, (1, 4, 4)), config)
    draws = noise_of(1, (1, 4, 4))
    x, kick = draws.draw(), math.sqrt(2 * 0.5 * 0.8) * draws.draw()

    def drift(x: Tensor, t: float) -> Tensor:
        return model(x, torch.tensor([t])) + 0.5 * model.score(x, torch.tensor(t))

    if sampler == "sde_euler":
        expected = x + 0.8 * drift(x, 0.0) + kick
    else:
        slope = drift(x + kick, 0.0)
        expected = x + kick + 0.4 * (slope + drift(x + kick + 0.8 * slope, 0.8))
    assert_close(ended, expected, 1e-5)


def test_without_diffusion_the_sde_is_the_ode() -> None:
    path = Linear()
    config = SamplerConfig(sampler="sde_heun", steps=24, diffusion_scale=0.0, last_step="euler")
    ended = sample(Field(Gaussian(path), path, "velocity", None), noise_of(1, (1, 8, 8)), config)
    expected = Gaussian(path).transported(noise_of(1, (1, 8, 8)).draw(), 0.0, 1.0)
    assert float((ended - expected).abs().max()) <= 0.02


# Batches.


def drawn(config: SamplerConfig, splits: list[int], seed: int = 3) -> Tensor:
    model, parts, first = tiny_sit(), [], 0
    for size in splits:
        labels = torch.arange(first, first + size) % 10
        field = Field(model, Linear(), "velocity", labels, config.guidance)
        noise = ImageNoise(seed, range(first, first + size), (4, 8, 8), CPU)
        parts.append(sample(field, noise, config))
        first += size
    return torch.cat(parts)


@pytest.mark.parametrize(
    "sampler",
    [
        # implicit_adams iterates until the whole batch has converged
        *(name for name in (*ODE_FIXED, *SDE) if name != "implicit_adams"),
    ],
)
@pytest.mark.filterwarnings("ignore:Functional iteration")
def test_an_image_does_not_depend_on_its_batch(sampler: str) -> None:
    config = SamplerConfig(sampler=sampler, steps=6, guidance=2.0)
    together = drawn(config, [5])
    for splits in ([1, 4], [2, 2, 1], [1] * 5):
        torch.testing.assert_close(drawn(config, splits), together, rtol=1e-5, atol=1e-5)


def test_an_adaptive_image_depends_on_its_batch_within_the_tolerance() -> None:
    config = SamplerConfig(sampler="dopri5", atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(drawn(config, [1, 4]), drawn(config, [5]), rtol=1e-2, atol=1e-2)


def test_seed_and_index_make_the_image() -> None:
    whole = ImageNoise(7, range(4), (1, 2, 2), CPU)
    part = ImageNoise(7, [2, 0], (1, 2, 2), CPU)
    for _ in range(3):
        one, other = whole.draw(), part.draw()
        assert torch.equal(one[[2, 0]], other)
        assert len({tuple(image.flatten().tolist()) for image in one}) == 4
    assert not torch.equal(ImageNoise(8, range(4), (1, 2, 2), CPU).draw(), whole.draw())


# Guidance.


def gaussian_field(guidance: float, **options: Any) -> tuple[Gaussian, Field]:
    model = Gaussian(Linear())
    return model, Field(model, Linear(), "velocity", torch.tensor([1, 2, 3]), guidance, **options)


X = torch.linspace(-1, 1, 3 * 4 * 2 * 2).reshape(3, 4, 2, 2)


def velocities(t: float) -> tuple[Tensor, Tensor]:
    """Conditional and unconditional."""
    model, times = Gaussian(Linear()), torch.full((3,), t)
    return model(X, times, torch.tensor([1, 2, 3])), model(X, times)


def test_guidance_leads_away_from_the_unconditional_velocity() -> None:
    conditional, unconditional = velocities(0.4)
    for scale in (0.0, 0.5, 2.0, 7.5):
        _, field = gaussian_field(scale)
        expected = unconditional + scale * (conditional - unconditional)
        assert_close(field(torch.tensor(0.4), X), expected, 1e-5)


def test_conditional_and_unconditional_are_one_call_of_the_model() -> None:
    model, field = gaussian_field(3.0)
    field(torch.tensor(0.4), X)
    assert model.batches == [6]
    model, field = gaussian_field(1.0)
    field(torch.tensor(0.4), X)
    assert model.batches == [3], "a scale of 1 needs no unconditional half"


def test_outside_its_interval_guidance_neither_acts_nor_costs() -> None:
    model, field = gaussian_field(3.0, interval=(0.3, 0.6))
    for t in (0.1, 0.29, 0.61, 0.9):
        assert_close(field(torch.tensor(t), X), velocities(t)[0], 1e-6)
    assert model.batches == [3] * 4
    for t in (0.31, 0.59):
        conditional, unconditional = velocities(t)
        expected = unconditional + 3 * (conditional - unconditional)
        assert_close(field(torch.tensor(t), X), expected, 1e-5)
    assert model.batches[4:] == [6, 6]


def test_channels_that_are_not_guided_stay_conditional() -> None:
    _, field = gaussian_field(3.0, channels=3)
    conditional, unconditional = velocities(0.4)
    guided = unconditional + 3 * (conditional - unconditional)
    expected = torch.cat([guided[:, :3], conditional[:, 3:]], 1)
    assert_close(field(torch.tensor(0.4), X), expected, 1e-5)


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        (tiny_sit(label_dropout=0.0), torch.tensor([1])),
        (tiny_sit(num_classes=0), None),
        (tiny_sit(), None),
    ],
    ids=["no null label", "no classes", "no labels"],
)
def test_guidance_without_a_null_label_is_refused(model: nn.Module, labels: Tensor | None) -> None:
    with pytest.raises(ValueError, match="set guidance to 1"):
        Field(model, Linear(), "velocity", labels, guidance=2.0)
    Field(model, Linear(), "velocity", labels, guidance=1.0)


# What it costs.


@pytest.mark.parametrize(
    ("sampler", "last_step", "expected"),
    [
        ("euler", "mean", 10),
        ("midpoint", "mean", 20),
        ("heun", "mean", 20),
        ("heun3", "mean", 30),
        ("rk4", "mean", 40),
        ("sde_euler", "mean", 11),
        ("sde_euler", "none", 10),
        ("sde_euler", "tweedie", 11),
        ("sde_heun", "euler", 21),
    ],
)
def test_evaluations_are_counted(sampler: str, last_step: Any, expected: int) -> None:
    model, field = gaussian_field(2.0)
    sample(field, noise_of(3, (1, 2, 2)), SamplerConfig(sampler=sampler, steps=10, last_step=last_step))
    assert field.evaluations == len(model.batches) == expected


# Likelihood.


def normal_log_density(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.distributions.Normal(mean, std).log_prob(x).flatten(1).sum(1)


@each_path
@pytest.mark.parametrize("config", [None, SamplerConfig(sampler="rk4", steps=60)], ids=["dopri5", "rk4"])
def test_the_likelihood_of_normal_data_is_its_density(path: Path, config: SamplerConfig | None) -> None:
    x = 0.2 * torch.randn(6, 2, 3, 3)
    found = log_likelihood(Field(Gaussian(path, mean=0.0), path, "velocity", None), x, config=config)
    end = torch.tensor(path.interval("velocity", sampling=True)[1])
    std = float(Gaussian(path, mean=0.0).variance(end).sqrt())
    torch.testing.assert_close(found, normal_log_density(x, 0.0, std), rtol=0, atol=0.01)


class Rotation(nn.Module):
    """v = M x over two channels, at all times."""

    matrix = torch.tensor([[0.4, -0.9], [0.3, -0.1]])

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", self.matrix, x)


def test_the_estimated_likelihood_is_right_on_average() -> None:
    """Of a field that mixes channels one estimate is off; the density is that of N(0, eᴹ eᴹᵀ)."""
    x = torch.randn(1, 2, 3, 3)
    config = SamplerConfig(sampler="rk4", steps=8)
    repeated = x.expand(400, -1, -1, -1).contiguous()
    found = log_likelihood(Field(Rotation(), Linear(), "velocity", None), repeated, config=config)
    back = torch.einsum("ij,bjhw->bihw", torch.matrix_exp(-Rotation.matrix), x)
    expected = normal_log_density(back, 0.0, 1.0) - 9 * Rotation.matrix.trace()
    spread = 3 * abs(0.3 - 0.9)  # of one estimate: 9 positions, each ±(M₀₁ + M₁₀)
    assert float(found.std()) == pytest.approx(spread, rel=0.15)
    assert float(found.mean()) == pytest.approx(float(expected), abs=4 * spread / math.sqrt(400))
    other = log_likelihood(Field(Rotation(), Linear(), "velocity", None), repeated, seed=1, config=config)
    assert not torch.equal(found, other)


def test_the_likelihood_of_a_sit_is_finite_and_leaves_no_gradients() -> None:
    model = tiny_sit(learn_sigma=False, in_channels=1)
    field = Field(model, Linear(), "velocity", torch.tensor([1, 2]))
    found = log_likelihood(field, torch.randn(2, 1, 4, 4), config=SamplerConfig(sampler="euler", steps=3))
    assert found.isfinite().all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_guided_field_and_an_sde_have_no_likelihood() -> None:
    _, guided = gaussian_field(2.0)
    _, plain = gaussian_field(1.0)
    with pytest.raises(ValueError, match="needs an ODE sampler and no guidance"):
        log_likelihood(guided, X)
    with pytest.raises(ValueError, match="needs an ODE sampler and no guidance"):
        log_likelihood(plain, X, config=SamplerConfig(sampler="sde_euler"))


def test_numbers_that_are_anything_alike_cost_eight_bits() -> None:
    """Uniform on [−1, 1]: density ½ a number, 256 levels."""
    dims = 12
    found = bits_per_dim(torch.tensor([-dims * math.log(2), 0.0]), dims)
    assert found.tolist() == pytest.approx([8.0, 7.0])
    assert float(bits_per_dim(torch.tensor([-dims * math.log(2)]), dims, levels=2)) == pytest.approx(1.0)


# Bad input.

BAD: list[tuple[Callable[[], SamplerConfig], str]] = [
    (lambda: SamplerConfig(sampler="ddim"), "no sampler 'ddim'; there are euler"),
    (lambda: SamplerConfig(steps=0), "steps must be at least 1"),
    (lambda: SamplerConfig(guidance_interval=(0.6, 0.4)), "guidance_interval must be"),
    (lambda: SamplerConfig(guidance_interval=(-0.1, 0.4)), "guidance_interval must be"),
    (lambda: SamplerConfig(last_step_size=0.0), "last_step_size must lie between 0 and 1"),
    (lambda: SamplerConfig(last_step_size=1.0), "last_step_size must lie between 0 and 1"),
    (lambda: SamplerConfig(atol=0.0), "atol and rtol must be positive"),
    (lambda: SamplerConfig(diffusion_scale=-1.0), "diffusion_scale not negative"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_options_that_make_no_sense_are_refused(make: Callable[[], SamplerConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
