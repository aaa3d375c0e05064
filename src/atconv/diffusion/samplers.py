"""From noise to data: ODE and SDE samplers with guidance, and the likelihood.

Every sampler asks a `Field` for velocities; the field asks the model, conditional and unconditional in one
batch. Random numbers come from one generator an image, so an image does not depend on the batch it was made
in. (Adaptive ODE solvers and implicit_adams control one error for the whole batch: there it depends within
their tolerance.)

Source: SiT (arXiv 2401.08740); classifier-free guidance (arXiv 2207.12598), in an interval of time
(arXiv 2404.07724); likelihood by Hutchinson's estimator (arXiv 2011.13456).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from atconv.diffusion.interpolants import Path, Prediction
from atconv.engine.rng import derive_seed

__all__ = [
    "ODE_ADAPTIVE",
    "ODE_FIXED",
    "SDE",
    "Field",
    "ImageNoise",
    "SamplerConfig",
    "bits_per_dim",
    "log_likelihood",
    "sample",
]

ODE_FIXED = ("euler", "midpoint", "heun", "heun3", "rk4", "explicit_adams", "implicit_adams")
ODE_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
SDE = ("sde_euler", "sde_heun")

Diffusion = Literal["sigma", "constant", "sbdm", "linear", "decreasing", "increasing_decreasing"]
LastStep = Literal["mean", "none", "tweedie", "euler"]


@dataclass(kw_only=True)
class SamplerConfig:
    """How images are drawn from a model."""

    sampler: str = "heun"
    """ODE: euler, midpoint, heun, heun3, rk4, explicit_adams, implicit_adams, or adaptive dopri5, dopri8,
    bosh3, fehlberg2, adaptive_heun; SDE: sde_euler (Euler–Maruyama), sde_heun"""
    steps: int = 50
    """steps of a fixed-step sampler; an SDE's last step comes on top"""
    guidance: float = 1.0
    """scale of classifier-free guidance; 1 is none"""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """times (0 noise, 1 data) between which guidance acts"""
    guidance_channels: int | None = None
    """guide only the first so many channels (the release: 3); default all"""
    atol: float = 1e-6
    """absolute tolerance of adaptive solvers"""
    rtol: float = 1e-3
    """relative tolerance of adaptive solvers"""
    diffusion: Diffusion = "sigma"
    """w_t of the SDE dx = (v + w·score)dt + √(2w)dW"""
    diffusion_scale: float = 1.0
    """factor on w_t"""
    last_step: LastStep = "mean"
    """the SDE's step to the data: its mean, none, Tweedie's estimate, or a velocity step"""
    last_step_size: float = 0.04
    """time that the last step of the SDE covers"""

    def __post_init__(self) -> None:
        known = (*ODE_FIXED, *ODE_ADAPTIVE, *SDE)
        if self.sampler not in known:
            raise ValueError(f"no sampler {self.sampler!r}; there are {', '.join(known)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance_interval must be 0 ≤ from < to ≤ 1, got {self.guidance_interval}")
        if not 0 < self.last_step_size < 1:
            raise ValueError(f"last_step_size must lie between 0 and 1, got {self.last_step_size}")
        if self.guidance_channels is not None and self.guidance_channels < 1:
            raise ValueError(f"guidance_channels must be at least 1, got {self.guidance_channels}")
        if self.atol <= 0 or self.rtol <= 0 or self.diffusion_scale < 0:
            raise ValueError("atol and rtol must be positive, diffusion_scale not negative")


class ImageNoise:
    """Standard normal numbers from one generator an image, drawn on the CPU, alike on every device."""

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int], device: torch.device) -> None:
        self.shape, self.device = tuple(shape), device
        seeds = [derive_seed("image", seed, index) for index in indices]
        self.generators = [torch.Generator().manual_seed(s) for s in seeds]

    def draw(self) -> Tensor:
        """The next B C H W."""
        drawn = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(self.device)


class Field:
    """The velocity that a model gives at (t, x), guided if asked. Counts its evaluations.

    Args:
        model: (x B C H W, t B, labels B) → prediction, such as a SiT.
        path: the interpolant it was trained on.
        prediction: what it predicts.
        labels: B class indices, or None for a model without classes.
        guidance: velocity = unconditional + guidance·(conditional − unconditional); 1 is conditional alone.
        interval: times between which guidance acts.
        channels: guide the first so many channels; the others stay conditional. Default: all.

    Raises:
        ValueError: guidance on a model without a null label.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        prediction: Prediction,
        labels: Tensor | None,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        channels: int | None = None,
    ) -> None:
        self.model, self.path, self.prediction, self.labels = model, path, prediction, labels
        self.guidance, self.interval, self.channels = guidance, interval, channels
        self.evaluations = 0
        self.times = path.interval(prediction, sampling=True)
        null = getattr(model, "null_label", None)
        self.pairs: Tensor | None = None
        if guidance != 1:
            if labels is None or null is None:
                raise ValueError(
                    "guidance needs a model with classes that was trained with label dropout; this one has "
                    "no null label: set guidance to 1"
                )
            self.pairs = torch.cat([labels, torch.full_like(labels, null)])

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Velocity at one time for all samples: t scalar, x B C H W, of x's dtype."""
        self.evaluations += 1
        if self.times != (0.0, 1.0):  # adaptive solvers look beyond the end, here into a singularity
            t = t.clamp(*self.times)
        if self.pairs is None or not self._guides(t):
            predicted = self._ask(x, t, self.labels)
        else:
            predicted = self._guided(*self._ask(torch.cat([x, x]), t, self.pairs).chunk(2))
        return self.path.to_velocity(predicted, self.prediction, x, t)

    def _ask(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The model works in its own dtype, the solver in that of its state."""
        parameter = next(self.model.parameters(), x)
        return self.model(x.to(parameter.dtype), t.expand(len(x)), labels).to(x.dtype)

    def _guides(self, t: Tensor) -> bool:
        return self.interval == (0.0, 1.0) or self.interval[0] <= float(t) <= self.interval[1]

    def _guided(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        guided = torch.lerp(unconditional, conditional, self.guidance)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], conditional[:, self.channels :]], dim=1)


@torch.no_grad()
def sample(field: Field, noise: ImageNoise, config: SamplerConfig) -> Tensor:
    """Draw samples B C H W, one from each generator of `noise`."""
    x = noise.draw()
    start, end = field.times
    if config.sampler in SDE:
        return _solve_sde(field, x, noise, config, start)
    return _solve_ode(field, x, config, start, end)


def _solve_ode(field: Any, x: Any, config: SamplerConfig, start: float, end: float) -> Any:
    """State at `end`, from the state at `start`."""
    method = {"heun": "heun2"}.get(config.sampler, config.sampler)
    points = 2 if config.sampler in ODE_ADAPTIVE else config.steps + 1
    device = (x[0] if isinstance(x, tuple) else x).device
    times = torch.linspace(start, end, points, device=device)
    # torchdiffeq's own order of 12 is unstable.
    options = {"max_order": 4} if method.endswith("_adams") else None
    states = odeint(field, x, times, method=method, atol=config.atol, rtol=config.rtol, options=options)
    return tuple(state[-1] for state in states) if isinstance(x, tuple) else states[-1]


def _solve_sde(field: Field, x: Tensor, noise: ImageNoise, config: SamplerConfig, start: float) -> Tensor:
    """Euler–Maruyama or Heun up to 1 − last_step_size, then the last step."""
    path = field.path
    times = torch.linspace(start, 1 - config.last_step_size, config.steps + 1, device=x.device)
    step = (1 - config.last_step_size - start) / config.steps

    def drift(t: Tensor, x: Tensor) -> Tensor:
        velocity = field(t, x)
        return velocity + _strength(path, t, step, config) * path.score_from_velocity(velocity, x, t)

    for i in range(config.steps):
        t, following = times[i], times[i + 1]
        kick = torch.sqrt(2 * step * _strength(path, t, step, config))
        kicked = x + kick * noise.draw()
        if config.sampler == "sde_euler":
            x = kicked + step * drift(t, x)
        else:  # Heun's two slopes, both from the noised state
            slope = drift(t, kicked)
            x = kicked + step / 2 * (slope + drift(following, kicked + step * slope))
    return _last_step(field, drift, x, times[-1], config)


def _last_step(field: Field, drift: Any, x: Tensor, t: Tensor, config: SamplerConfig) -> Tensor:
    if config.last_step == "none":
        return x
    if config.last_step == "mean":
        return x + config.last_step_size * drift(t, x)
    velocity = field(t, x)
    if config.last_step == "euler":
        return x + config.last_step_size * velocity
    score = field.path.score_from_velocity(velocity, x, t)
    return (x + field.path.sigma(t) ** 2 * score) / field.path.alpha(t)


def _strength(path: Path, t: Tensor, step: float, config: SamplerConfig) -> Tensor:
    """w_t, a scalar."""
    kind = config.diffusion
    if kind == "sigma":
        strength = path.sigma(t)
    elif kind == "constant":
        strength = torch.ones_like(t)
    elif kind == "linear":
        strength = 1 - t
    elif kind == "decreasing":
        strength = (torch.cos(math.pi * t) + 1) ** 2 / 4
    elif kind == "increasing_decreasing":
        strength = torch.sin(math.pi * t) ** 2
    else:  # sbdm: infinite where α = 0, so the first step takes the value at its end
        t = t.clamp_min(step)
        sigma = path.sigma(t)
        strength = path.d_alpha(t) / path.alpha(t) * sigma**2 - sigma * path.d_sigma(t)
    return config.diffusion_scale * strength


def log_likelihood(field: Field, x: Tensor, seed: int = 0, config: SamplerConfig | None = None) -> Tensor:
    """log p(x) in nats for each sample, by following the ODE from data to noise.

    The divergence of the velocity is estimated with one random ±1 vector a sample (Hutchinson): unbiased,
    with a spread that averaging over seeds or samples narrows.

    Args:
        field: the model's velocity, unguided.
        x: samples B C H W, in the model's units.
        seed: of the random vectors.
        config: ODE method, steps, tolerances; default dopri5 at 1e-5.

    Returns:
        B log densities.

    Raises:
        ValueError: an SDE sampler, or a guided field, which has no density.
    """
    config = config or SamplerConfig(sampler="dopri5", atol=1e-5, rtol=1e-5)
    if config.sampler in SDE or field.pairs is not None:
        raise ValueError("the likelihood needs an ODE sampler and no guidance")
    probes = ImageNoise(seed, range(len(x)), x.shape[1:], x.device).draw().sign().to(x.dtype)

    def augmented(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = state[0].detach().requires_grad_()
            velocity = field(t, at)
            (gradient,) = torch.autograd.grad(velocity, at, probes)
        return velocity.detach(), (gradient * probes).flatten(1).sum(1)

    start, end = field.times
    with torch.no_grad():
        noise, change = _solve_ode(augmented, (x, x.new_zeros(len(x))), config, end, start)
        # `change` is ∫ div v dt from end to start: minus the integral along the flow.
        sigma = field.path.sigma(torch.tensor(start))
        scaled = noise.flatten(1) / sigma
        prior = -0.5 * (scaled**2 + math.log(2 * math.pi)).sum(1) - scaled.shape[1] * math.log(sigma)
    return prior + change


def bits_per_dim(log_likelihoods: Tensor, dims: int, levels: int = 256) -> Tensor:
    """Bits per dimension of images with `levels` values that were scaled to [−1, 1].

    Args:
        log_likelihoods: B, nats, of dequantized images in [−1, 1].
        dims: numbers in an image, C·H·W.
        levels: values a number can take.
    """
    return math.log2(levels / 2) - log_likelihoods / (dims * math.log(2))
