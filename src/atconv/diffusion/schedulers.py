"""From noise to data: an ODE and an SDE scheduler, as diffusers has schedulers.

Time runs from t = 0, noise, to t = 1, data. A scheduler solves from noise to data,

    scheduler.set_timesteps(50)
    data = scheduler.solve(field, noise, generator)

where it evaluates the velocity field as often as its method needs. Methods that need one evaluation a step
(`euler` of both schedulers) can be stepped from outside too, as other schedulers of diffusers:

    for t in scheduler.timesteps:
        noise = scheduler.step(model(noise, t.expand(len(noise)), labels), t, noise, generator).prev_sample

`generator` may be a list of one generator for each image: then an image does not depend on the batch it was
made in. (Adaptive methods and implicit_adams control one error for the batch as a unit: there it depends
within their tolerance.)

Source: SiT (arXiv 2401.08740).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torchdiffeq import odeint

from atconv.diffusion.field import Field
from atconv.diffusion.interpolants import Interpolant, Prediction, check_choice, check_whole, make_interpolant

__all__ = [
    "ODE_ADAPTIVE",
    "ODE_FIXED",
    "Diffusion",
    "Generators",
    "InterpolantScheduler",
    "LastStep",
    "ODEScheduler",
    "SDEScheduler",
]

ODE_FIXED = ("euler", "midpoint", "heun", "heun3", "rk4", "explicit_adams", "implicit_adams")
ODE_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
SDE_SOLVERS = ("euler", "heun")

Diffusion = Literal["sigma", "constant", "sbdm", "linear", "decreasing", "increasing_decreasing"]
LastStep = Literal["mean", "none", "tweedie", "euler", "auto"]
Generators = torch.Generator | list[torch.Generator] | None
Velocity = Callable[[Tensor, Tensor], Tensor]
"""(t scalar, x B C H W) → velocity B C H W"""


class InterpolantScheduler(SchedulerMixin, ConfigMixin, ABC):  # type: ignore[misc]  # as diffusers' own
    """What the two schedulers share.

    `from_config` of one takes the configuration of the other: the interpolant and the prediction come along,
    each keeps its own options.
    """

    order = 1
    init_noise_sigma = 1.0
    config: Any
    interpolant: Interpolant
    num_inference_steps: int
    times: Tensor
    """the points in time, the end included"""
    timesteps: Tensor
    """where each step starts"""
    method_name: str
    """the numerical method"""

    @abstractmethod
    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose how many steps to take, and set `timesteps`, t = 0 first."""

    @abstractmethod
    def _advance(self, field: Velocity, index: int, sample: Tensor, generator: Generators) -> Tensor:
        """The sample after the step that starts at `timesteps[index]`."""

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step of a method that evaluates the model once a step.

        Args:
            model_output: the model's prediction at (sample, timestep), B C H W.
            timestep: one of `timesteps`.
            sample: B C H W at that time.
            generator: of the noise, where there is some.
            return_dict: return a `SchedulerOutput`, else a tuple.

        Returns:
            `prev_sample`, as diffusers names it: the sample at the following time, nearer to the data.

        Raises:
            ValueError: the method evaluates the model more than once a step.
        """
        if self.method_name != "euler":
            raise ValueError(
                f"step() takes one evaluation of the model, which {self.method_name} cannot do with: use "
                "euler, or solve(field, sample)"
            )
        t = torch.as_tensor(timestep, device=sample.device)
        velocity = self.interpolant.to_velocity(model_output, self.config.prediction, sample, t)
        index = int((self.timesteps.to(t.device) - t).abs().argmin())
        moved = self._advance(lambda t, x: velocity, index, sample, generator)
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def solve(
        self,
        field: Field,
        sample: Tensor,
        generator: Generators = None,
        callback: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """From noise to data.

        Args:
            field: the model's velocity.
            sample: noise, B C H W.
            generator: of the noise that an SDE adds; a list holds one for each image.
            callback: (index, t, sample) → sample, called after each of `timesteps`.

        Returns:
            samples B C H W, in the model's units.

        Raises:
            ValueError: the field has another interpolant or prediction than this scheduler.
        """
        self.check_field(field)
        for index, t in enumerate(self.timesteps):
            sample = self._advance(field, index, sample, generator)
            if callback is not None:
                sample = callback(index, t, sample)
        return sample

    def check_field(self, field: Field) -> None:
        """Raise ValueError where a field has another interpolant or prediction than this scheduler."""
        wanted = field.interpolant.name, field.prediction
        if (self.config.interpolant, self.config.prediction) != wanted:
            name = type(self).__name__
            raise ValueError(
                f"this {name} is for models of interpolant {self.config.interpolant!r} that predict "
                f"{self.config.prediction}; this model has {wanted[0]!r} and predicts {wanted[1]}: use "
                f"{name}.from_config(pipe.scheduler.config), or {name}(interpolant=…, prediction=…)"
            )

    @property
    def _interval(self) -> tuple[float, float]:
        return self.interpolant.interval(self.config.prediction, sampling=True)

    @classmethod
    def _get_compatibles(cls) -> list[type[InterpolantScheduler]]:
        return [ODEScheduler, SDEScheduler]


class ODEScheduler(InterpolantScheduler):
    """Solves dx = v(x, t) dt.

    Args:
        method: fixed steps: euler, midpoint, heun, heun3, rk4, explicit_adams, implicit_adams; or adaptive:
            dopri5, dopri8, bosh3, fehlberg2, adaptive_heun. (Adams methods and adaptive ones run from noise
            to data in one go: they have one timestep.)
        atol, rtol: absolute and relative tolerance of adaptive methods.
        interpolant: what the model was trained on: linear, gvp or vp.
        prediction: what the model predicts: velocity, score or noise.

    Raises:
        ValueError: no such method, interpolant or prediction, or a tolerance that is not positive.
    """

    @register_to_config
    def __init__(
        self,
        *,  # diffusers' from_config forgets options that were positional
        method: str = "heun",
        atol: float = 1e-6,
        rtol: float = 1e-3,
        interpolant: str = "linear",
        prediction: Prediction = "velocity",
    ) -> None:
        check_choice("ODE method", method, (*ODE_FIXED, *ODE_ADAPTIVE))
        check_choice("prediction", prediction, get_args(Prediction))
        if atol <= 0 or rtol <= 0:
            raise ValueError(f"atol and rtol must be positive, got {atol} and {rtol}")
        self.interpolant, self.method_name = make_interpolant(interpolant), method
        self.set_timesteps(50)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        _check_steps(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        method = self.config.method
        points = 2 if method in ODE_ADAPTIVE else num_inference_steps + 1
        self.times = torch.linspace(*self._interval, points, device=device)
        one_go = method.endswith("_adams")  # its steps build on each other
        self._spans = [self.times] if one_go else [torch.stack(pair) for pair in pairwise(self.times)]
        self.timesteps = self.times[: len(self._spans)]

    def integrate(self, function: Callable[[Tensor, Any], Any], state: Any, times: Tensor) -> Any:
        """State (a tensor or a tuple of them) at the last of `times`, from the state at the first. Steps go
        from time to time."""
        method = {"heun": "heun2"}.get(self.config.method, self.config.method)
        # torchdiffeq's own order of 12 is unstable.
        options = {"max_order": 4} if method.endswith("_adams") else None
        tolerances = {"atol": self.config.atol, "rtol": self.config.rtol}
        states = odeint(function, state, times, method=method, options=options, **tolerances)
        return tuple(part[-1] for part in states) if isinstance(state, tuple) else states[-1]

    def _advance(self, field: Velocity, index: int, sample: Tensor, generator: Generators) -> Tensor:
        return self.integrate(field, sample, self._spans[index])


class SDEScheduler(InterpolantScheduler):
    """Solves dx = (v + w·score) dt + √(2w) dW up to t = 1 − last_step_size, then takes a last step.

    Args:
        solver: euler (Euler–Maruyama) or heun.
        diffusion: w over time: sigma, constant, sbdm, linear, decreasing or increasing_decreasing.
        diffusion_scale: factor on w.
        last_step: the step to the data: the SDE's mean, none, Tweedie's estimate, or a velocity (euler) step.
            It comes on top of the number of steps. auto: the mean, or Tweedie's estimate where the mean would
            take off far more noise than there is, as with a constant w.
        last_step_size: time that the last step covers.
        interpolant: what the model was trained on: linear, gvp or vp.
        prediction: what the model predicts: velocity, score or noise.

    Raises:
        ValueError: no such solver, diffusion, last step, interpolant or prediction, or numbers out of range.
    """

    @register_to_config
    def __init__(
        self,
        *,
        solver: str = "euler",
        diffusion: Diffusion = "sigma",
        diffusion_scale: float = 1.0,
        last_step: LastStep = "auto",
        last_step_size: float = 0.04,
        interpolant: str = "linear",
        prediction: Prediction = "velocity",
    ) -> None:
        check_choice("SDE solver", solver, SDE_SOLVERS)
        check_choice("diffusion", diffusion, get_args(Diffusion))
        check_choice("last_step", last_step, get_args(LastStep))
        check_choice("prediction", prediction, get_args(Prediction))
        if diffusion_scale < 0:
            raise ValueError(f"diffusion_scale must not be negative, got {diffusion_scale}")
        if not 0 < last_step_size < 1:
            raise ValueError(f"last_step_size must lie between 0 and 1, got {last_step_size}")
        self.interpolant, self.method_name = make_interpolant(interpolant), solver
        self.set_timesteps(50)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        _check_steps(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        start, end = self._interval[0], 1 - self.config.last_step_size
        self.times = torch.linspace(start, end, num_inference_steps + 1, device=device)
        self._step_size = (end - start) / num_inference_steps
        self.timesteps = self.times[:-1] if self.config.last_step == "none" else self.times

    def _advance(self, field: Velocity, index: int, sample: Tensor, generator: Generators) -> Tensor:
        t, step = self.times[index], self._step_size
        if index == self.num_inference_steps:
            return self._last_step(field, sample, t)
        noise = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
        kicked = sample + torch.sqrt(2 * step * self._strength(t)) * noise
        if self.config.solver == "euler":
            return kicked + step * self._drift(field, t, sample)
        slope = self._drift(field, t, kicked)  # Heun's two slopes, both from the noised state
        ahead = self._drift(field, self.times[index + 1], kicked + step * slope)
        return kicked + step / 2 * (slope + ahead)

    def _drift(self, field: Velocity, t: Tensor, x: Tensor) -> Tensor:
        velocity = field(t, x)
        return velocity + self._strength(t) * self.interpolant.score_from_velocity(velocity, x, t)

    def _last_step(self, field: Velocity, x: Tensor, t: Tensor) -> Tensor:
        size, kind = self.config.last_step_size, self.config.last_step
        if kind == "auto":
            excess = size * self._strength(t) > 2 * self.interpolant.sigma(t) ** 2
            kind = "tweedie" if excess else "mean"
        if kind == "mean":
            return x + size * self._drift(field, t, x)
        velocity = field(t, x)
        if kind == "euler":
            return x + size * velocity
        score = self.interpolant.score_from_velocity(velocity, x, t)  # Tweedie
        return (x + self.interpolant.sigma(t) ** 2 * score) / self.interpolant.alpha(t)

    def _strength(self, t: Tensor) -> Tensor:
        """w at t, a scalar."""
        kind, alpha, sigma = self.config.diffusion, self.interpolant.alpha, self.interpolant.sigma
        if kind == "sigma":
            strength = sigma(t)
        elif kind == "constant":
            strength = torch.ones_like(t)
        elif kind == "linear":
            strength = 1 - t
        elif kind == "decreasing":
            strength = (torch.cos(math.pi * t) + 1) ** 2 / 4
        elif kind == "increasing_decreasing":
            strength = torch.sin(math.pi * t) ** 2
        else:  # sbdm: infinite where α = 0, so the first step takes the value at its end
            t = t.clamp_min(self._step_size)
            strength = self.interpolant.d_alpha(t) / alpha(t) * sigma(t) ** 2
            strength = strength - sigma(t) * self.interpolant.d_sigma(t)
        return self.config.diffusion_scale * strength


def _check_steps(steps: int) -> None:
    check_whole(steps=steps)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
