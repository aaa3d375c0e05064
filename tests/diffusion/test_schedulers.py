"""Schedulers: the release's end points, data whose answer is known, batches, steps, saving."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atconv.diffusion.field import Field
from atconv.diffusion.interpolants import GVP, VP, Interpolant, Linear, Prediction
from atconv.diffusion.schedulers import (
    ODE_ADAPTIVE,
    ODE_FIXED,
    InterpolantScheduler,
    ODEScheduler,
    SDEScheduler,
)
from atconv.engine.rng import derive_seed
from support.gaussian import MEAN, STD, Gaussian, X, gaussian_field
from support.helpers import assert_close
from support.tiny_sit import tiny_sit, transport

INTERPOLANTS = [Linear(), GVP(), VP()]
KINDS: list[Prediction] = ["velocity", "score", "noise"]
SDE = ("sde_euler", "sde_heun")
DIFFUSIONS = ["sigma", "constant", "sbdm", "linear", "decreasing", "increasing_decreasing"]
each_interpolant = pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda kind: kind.name)


class Noise:
    """Standard normal numbers from one generator an image."""

    def __init__(self, count: int = 4, shape: tuple[int, int, int] = (1, 48, 48), seed: int = 0) -> None:
        seeds = [derive_seed("image", seed, i) for i in range(count)]
        self.generators = [torch.Generator().manual_seed(s) for s in seeds]
        self.shape = shape

    def sample(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])


def scheduler_of(sampler: str, field: Field, **options: Any) -> InterpolantScheduler:
    """A scheduler for a field: an ODE method, or "sde_" and an SDE solver."""
    options |= {"interpolant": field.interpolant.name, "prediction": field.prediction}
    if sampler.startswith("sde_"):
        return SDEScheduler(solver=sampler.removeprefix("sde_"), **options)
    return ODEScheduler(method=sampler, **options)


def sample(field: Field, noise: Noise, sampler: str, steps: int = 50, **options: Any) -> Tensor:
    """Samples of a field, one from each generator of `noise`."""
    return sample_from(field, noise.sample(), sampler, steps, noise.generators, **options)


@torch.no_grad()
def sample_from(
    field: Field, start: Tensor, sampler: str, steps: int, generators: Any = None, **options: Any
) -> Tensor:
    scheduler = scheduler_of(sampler, field, **options)
    scheduler.set_timesteps(steps)
    return scheduler.solve(field, start, generators)


class Toy(nn.Module):
    """v(x, t) = M x + 0.1·sin 3t, as in the reference file."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        mixed = torch.einsum("ij,bjhw->bihw", transport()["model_matrix"], x)
        return mixed + 0.1 * torch.sin(3 * t)[:, None, None, None]


# ODE.


@pytest.mark.parametrize("sampler", ["euler", "heun3", "dopri5"])
def test_end_points_are_those_of_the_release(sampler: str) -> None:
    tensors = transport()
    ended = sample_from(Field(Toy(), Linear()), tensors["noise"], sampler, 10)
    assert_close(ended, tensors[f"ode.{sampler}"], 1e-5)


# Steps (or tolerance), and greatest error of any number in units of the data's deviation.
ODE_ERRORS = {
    "euler": (100, 0.06),
    "heun": (100, 5e-3),
    "midpoint": (50, 5e-3),
    "explicit_adams": (200, 5e-3),
}


@each_interpolant
@pytest.mark.parametrize("sampler", [*ODE_FIXED, *ODE_ADAPTIVE])
def test_every_ode_sampler_takes_noise_to_where_it_belongs(interpolant: Interpolant, sampler: str) -> None:
    steps, error = ODE_ERRORS.get(sampler, (40, 1e-2 if sampler in ODE_ADAPTIVE else 1e-3))
    model, noise = Gaussian(interpolant), Noise(2, (1, 8, 8))
    options: dict[str, Any] = dict(sampler=sampler, steps=steps, atol=1e-5, rtol=1e-5)
    ended = sample(Field(model, interpolant), noise, **options)
    start, end = interpolant.interval("velocity", sampling=True)
    expected = model.transported(Noise(2, (1, 8, 8)).sample(), start, end)
    assert float((ended - expected).abs().max()) <= error * STD


class Clock(nn.Module):
    """Records the times it is evaluated at."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.times.append(float(t[0]))
        return torch.sin(9 * t)[:, None, None, None] - x


@each_interpolant
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
def test_the_model_is_evaluated_at_no_time_outside_the_interval(
    interpolant: Interpolant, kind: Any, sampler: str
) -> None:
    if sampler in ODE_ADAPTIVE and interpolant.interval(kind, sampling=True) == (0.0, 1.0):
        pytest.skip("nothing is singular there, and the release's end points are met only so")
    model = Clock()
    sample(Field(model, interpolant, kind), Noise(1, (1, 4, 4)), sampler, 9)
    start, end = interpolant.interval(kind, sampling=True)
    assert min(model.times) >= start - 1e-6
    assert max(model.times) <= end + 1e-6


@each_interpolant
@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_is_sampled_alike(interpolant: Interpolant, kind: Prediction) -> None:
    model, noise = Gaussian(interpolant, kind), Noise(2, (1, 8, 8))
    ended = sample(Field(model, interpolant, kind), noise, "heun", 200)
    start, end = interpolant.interval(kind, sampling=True)
    expected = model.transported(Noise(2, (1, 8, 8)).sample(), start, end)
    assert float((ended - expected).abs().max()) <= 0.02 * STD


def test_steps_are_steps_and_not_points() -> None:
    tensors = transport()
    ended = sample_from(Field(Toy(), Linear()), tensors["noise"], "euler", steps=1)
    mixed = torch.einsum("ij,bjhw->bihw", tensors["model_matrix"], tensors["noise"])
    assert_close(ended, tensors["noise"] + mixed, 1e-6)  # sin 0 = 0


# SDE.


@each_interpolant
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("sampler", SDE)
def test_every_sde_keeps_the_mean_and_deviation_of_the_path(
    interpolant: Interpolant, diffusion: Any, sampler: str
) -> None:
    model, t = Gaussian(interpolant), torch.tensor(0.96)
    options: dict[str, Any] = dict(sampler=sampler, steps=200, diffusion=diffusion, last_step="none")
    ended = sample(Field(model, interpolant), Noise(), **options)
    assert ended.isfinite().all()
    # 9216 numbers: the standard error of the mean is 1 %, that of the deviation 0.7 %.
    deviation = float(model.variance(t).sqrt())
    assert float(ended.mean()) == pytest.approx(float(interpolant.alpha(t)) * MEAN, abs=0.04 * deviation)
    assert float(ended.std()) == pytest.approx(deviation, rel=0.05)


@each_interpolant
@pytest.mark.parametrize("sampler", SDE)
def test_sdes_sample_what_predicts_score_or_noise(interpolant: Interpolant, sampler: str) -> None:
    options: dict[str, Any] = dict(sampler=sampler, steps=200, last_step="tweedie")
    for kind in ("score", "noise"):
        ended = sample(Field(Gaussian(interpolant, kind), interpolant, kind), Noise(1), **options)
        assert float(ended.mean()) == pytest.approx(MEAN, abs=0.1 * STD)


@each_interpolant
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler"])
def test_last_steps_start_where_the_sde_without_one_ends(
    interpolant: Interpolant, diffusion: Any, last_step: Any
) -> None:
    model = Gaussian(interpolant)

    def ended(last: Any) -> Tensor:
        options: dict[str, Any] = dict(sampler="sde_euler", steps=20, diffusion=diffusion, last_step=last)
        return sample(Field(model, interpolant), Noise(1, (1, 8, 8)), **options)

    before, t, size = ended("none"), torch.tensor(0.96), 0.04
    velocity = model(before, t[None])
    sigma = interpolant.sigma(t)
    strength = {
        "sigma": sigma,
        "constant": torch.tensor(1.0),
        "sbdm": interpolant.d_alpha(t) / interpolant.alpha(t) * sigma**2 - sigma * interpolant.d_sigma(t),
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
    interpolant, model = Linear(), Gaussian(Linear())
    options: dict[str, Any] = dict(
        sampler=sampler,
        steps=1,
        last_step="none",
        diffusion="constant",
        diffusion_scale=0.5,
        last_step_size=0.2,
    )
    ended = sample(Field(model, interpolant), Noise(1, (1, 4, 4)), **options)
    noise = Noise(1, (1, 4, 4))
    x, kick = noise.sample(), math.sqrt(2 * 0.5 * 0.8) * noise.sample()

    def drift(x: Tensor, t: float) -> Tensor:
        return model(x, torch.tensor([t])) + 0.5 * model.score(x, torch.tensor(t))

    if sampler == "sde_euler":
        expected = x + 0.8 * drift(x, 0.0) + kick
    else:
        slope = drift(x + kick, 0.0)
        expected = x + kick + 0.4 * (slope + drift(x + kick + 0.8 * slope, 0.8))
    assert_close(ended, expected, 1e-5)


def test_without_diffusion_the_sde_is_the_ode() -> None:
    interpolant = Linear()
    options: dict[str, Any] = dict(sampler="sde_heun", steps=24, diffusion_scale=0.0, last_step="euler")
    ended = sample(Field(Gaussian(interpolant), interpolant), Noise(1, (1, 8, 8)), **options)
    expected = Gaussian(interpolant).transported(Noise(1, (1, 8, 8)).sample(), 0.0, 1.0)
    assert float((ended - expected).abs().max()) <= 0.02


# Batches.


def samples_of(sampler: str, steps: int, sizes: list[int], **options: Any) -> Tensor:
    """The same guided images, made in batches of these sizes."""
    model, noise = tiny_sit(), Noise(sum(sizes), (4, 8, 8), seed=3)
    start, generators = noise.sample(), noise.generators
    parts, first = [], 0
    for size in sizes:
        own = slice(first, first + size)
        field = Field(model, Linear(), "velocity", torch.arange(first, first + size) % 10, 2.0)
        parts.append(sample_from(field, start[own], sampler, steps, generators[own], **options))
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
    together = samples_of(sampler, 6, [5])
    for sizes in ([1, 4], [2, 2, 1], [1] * 5):
        torch.testing.assert_close(samples_of(sampler, 6, sizes), together, rtol=1e-5, atol=1e-5)


def test_an_adaptive_image_depends_on_its_batch_within_the_tolerance() -> None:
    parts, together = (samples_of("dopri5", 50, sizes, atol=1e-4, rtol=1e-4) for sizes in ([1, 4], [5]))
    torch.testing.assert_close(parts, together, rtol=1e-2, atol=1e-2)


# As diffusers has schedulers.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last_step", ["mean", "none", "tweedie", "euler"])
@each_interpolant
def test_stepping_from_outside_is_solving(interpolant: Interpolant, kind: Prediction, last_step: Any) -> None:
    model = Gaussian(interpolant, kind)
    for sampler, options in (("euler", {}), ("sde_euler", {"last_step": last_step})):
        expected = sample(Field(model, interpolant, kind), Noise(2, (1, 4, 4)), sampler, 7, **options)
        scheduler = scheduler_of(sampler, Field(model, interpolant, kind), **options)
        scheduler.set_timesteps(7)
        noise = Noise(2, (1, 4, 4))
        x = noise.sample()
        for t in scheduler.timesteps:
            prediction = model(x, t.expand(2))
            before = [generator.get_state() for generator in noise.generators]
            stepped = scheduler.step(prediction, t, x, noise.generators).prev_sample
            for generator, state in zip(noise.generators, before, strict=True):
                generator.set_state(state)
            (x,) = scheduler.step(prediction, float(t), x, noise.generators, return_dict=False)
            assert torch.equal(x, stepped)
        assert_close(x, expected, 1e-5)


@pytest.mark.parametrize(
    "scheduler", [ODEScheduler(method="rk4"), SDEScheduler(solver="heun"), ODEScheduler(method="dopri5")]
)
def test_methods_of_several_evaluations_cannot_be_stepped(scheduler: InterpolantScheduler) -> None:
    with pytest.raises(ValueError, match=r"cannot do with: use euler, or solve\(field, sample\)"):
        scheduler.step(X, 0.0, X)


def test_callbacks_come_after_each_timestep_and_may_change_the_sample() -> None:
    def halve(index: int, t: Tensor, sample: Tensor) -> Tensor:
        calls.append((index, float(t)))
        return sample / 2 if index == 1 else sample

    _, field = gaussian_field(1.0)
    for scheduler, count in (
        (ODEScheduler(method="heun"), 4), (SDEScheduler(), 5), (SDEScheduler(last_step="none"), 4),
        (ODEScheduler(method="dopri5"), 1), (ODEScheduler(method="explicit_adams"), 1),
    ):  # fmt: skip
        calls: list[tuple[int, float]] = []
        scheduler.set_timesteps(4)
        generator = torch.Generator().manual_seed(0)
        changed = scheduler.solve(field, X, generator, halve)
        assert calls == [(i, float(t)) for i, t in enumerate(scheduler.timesteps)]
        assert len(calls) == count
        unchanged = scheduler.solve(field, X, generator.manual_seed(0))
        assert torch.equal(changed, unchanged) == (count == 1)


def test_a_scheduler_is_saved_and_made_from_another(tmp_path: Path) -> None:
    ode = ODEScheduler(method="dopri5", rtol=1e-4, interpolant="gvp", prediction="noise")
    ode.save_pretrained(tmp_path / "scheduler")
    assert (tmp_path / "scheduler" / "scheduler_config.json").is_file()
    loaded = ODEScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    for name in ("method", "atol", "rtol", "interpolant", "prediction"):
        assert loaded.config[name] == ode.config[name]
    sde = SDEScheduler.from_config(ode.config, last_step="tweedie")
    assert (sde.config.interpolant, sde.config.prediction) == ("gvp", "noise")
    assert (sde.config.solver, sde.config.last_step) == ("euler", "tweedie")
    again = ODEScheduler.from_config(sde.config)
    assert (again.config.method, again.config.rtol) == ("dopri5", 1e-4)


def test_a_scheduler_of_another_interpolant_or_prediction_is_rejected() -> None:
    field = Field(Gaussian(GVP()), GVP())
    for scheduler in (SDEScheduler(), ODEScheduler(interpolant="gvp", prediction="score")):
        with pytest.raises(ValueError, match=r"has 'gvp' and predicts velocity: use .*from_config"):
            scheduler.solve(field, X)


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
    options = {"last_step": last_step} if sampler in SDE else {}
    sample(field, Noise(3, (1, 2, 2)), sampler, 10, **options)
    assert field.evaluations == len(model.batches) == expected


# Bad input.

BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: ODEScheduler(method="ddim"), "no ODE method 'ddim'; there are euler"),
    (lambda: SDEScheduler(solver="rk4"), "no SDE solver 'rk4'; there are euler, heun"),
    (lambda: ODEScheduler(interpolant="cosine"), "no interpolant 'cosine'; there are linear, gvp, vp"),
    (lambda: ODEScheduler(prediction="image"), "no prediction 'image'; there are velocity"),  # type: ignore[arg-type]
    (lambda: SDEScheduler(diffusion="sqrt"), "no diffusion 'sqrt'; there are sigma"),  # type: ignore[arg-type]
    (lambda: SDEScheduler(last_step="two"), "no last_step 'two'; there are mean"),  # type: ignore[arg-type]
    (lambda: ODEScheduler().set_timesteps(0), "steps must be at least 1"),
    (lambda: SDEScheduler().set_timesteps(0), "steps must be at least 1"),
    (lambda: gaussian_field(2.0, guidance_interval=(0.6, 0.4)), "guidance_interval must be"),
    (lambda: gaussian_field(2.0, guidance_interval=(-0.1, 0.4)), "guidance_interval must be"),
    (lambda: gaussian_field(2.0, guidance_channels=0), "guidance_channels must be at least 1"),
    (lambda: SDEScheduler(last_step_size=0.0), "last_step_size must lie between 0 and 1"),
    (lambda: SDEScheduler(last_step_size=1.0), "last_step_size must lie between 0 and 1"),
    (lambda: ODEScheduler(atol=0.0), "atol and rtol must be positive"),
    (lambda: SDEScheduler(diffusion_scale=-1.0), "diffusion_scale must not be negative"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_options_that_make_no_sense_are_rejected(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_the_last_step_by_default_keeps_the_spread_of_the_data(diffusion: Any, scale: float) -> None:
    scheduler = SDEScheduler(diffusion=diffusion, diffusion_scale=scale)
    scheduler.set_timesteps(250)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5000, 1, 2, 2, generator=generator)
    samples = scheduler.solve(Field(Gaussian(Linear()), Linear()), noise, generator)
    assert float(samples.std()) == pytest.approx(STD, rel=0.06)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.02)
