"""Stochastic interpolants: how noise becomes data, and what a network may predict of it.

t = 0 is noise, t = 1 is data. It is x_t = α_t·data + σ_t·noise; its velocity is
v = α'_t·data + σ'_t·noise. Velocity, score and noise are three readings of one prediction:

    noise = −σ·score         score = (α·v − α'·x) / (σ·(α'·σ − α·σ'))

Source: SiT (arXiv 2401.08740).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = [
    "GVP",
    "VP",
    "Interpolant",
    "Linear",
    "Prediction",
    "check_choice",
    "check_whole",
    "make_interpolant",
]

Prediction = Literal["velocity", "score", "noise"]


class Interpolant(ABC):
    """α and σ over time, their derivatives, and conversions. Times t broadcast against x from the left."""

    name: str
    training_margin = sampling_margin = 0.0
    """time left out before t = 1, in training and in sampling, where the velocity is singular there"""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """dα/dt."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """dσ/dt."""

    @abstractmethod
    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """The t at which σ/α is `ratio`."""

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and its velocity, for data and noise B …, t of B."""
        t = _expand(t, data)
        x = self.alpha(t) * data + self.sigma(t) * noise
        return x, self.d_alpha(t) * data + self.d_sigma(t) * noise

    def score_from_velocity(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """∇ log p_t(x). Infinite at t = 1, where there is no noise left."""
        t = _expand(t, x)
        alpha, d_alpha = self.alpha(t), self.d_alpha(t)
        sigma, d_sigma = self.sigma(t), self.d_sigma(t)
        return (alpha * velocity - d_alpha * x) / (sigma * (d_alpha * sigma - alpha * d_sigma))

    def velocity_from_score(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The inverse of `score_from_velocity`. Infinite where α = 0."""
        t = _expand(t, x)
        alpha, d_alpha = self.alpha(t), self.d_alpha(t)
        sigma, d_sigma = self.sigma(t), self.d_sigma(t)
        return (d_alpha * x + sigma * (d_alpha * sigma - alpha * d_sigma) * score) / alpha

    def to_velocity(self, prediction: Tensor, kind: Prediction, x: Tensor, t: Tensor) -> Tensor:
        """What a network predicted, as a velocity."""
        if kind == "velocity":
            return prediction
        if kind == "noise":
            prediction = -prediction / self.sigma(_expand(t, x))
        return self.velocity_from_score(prediction, x, t)

    def interval(self, kind: Prediction, sampling: bool) -> tuple[float, float]:
        """Times that training samples, or that sampling runs over: [0, 1] without what is singular."""
        if kind != "velocity":
            return 1e-3, 1 - 1e-3
        return 0.0, 1.0 - (self.sampling_margin if sampling else self.training_margin)


class Linear(Interpolant):
    """α = t, σ = 1 − t: straight lines (rectified flow)."""

    name = "linear"

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + ratio)


class GVP(Interpolant):
    """α = sin(πt/2), σ = cos(πt/2): generalized variance preserving."""

    name = "gvp"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def d_alpha(self, t: Tensor) -> Tensor:
        return (math.pi / 2) * torch.cos(t * (math.pi / 2))

    def d_sigma(self, t: Tensor) -> Tensor:
        return -(math.pi / 2) * torch.sin(t * (math.pi / 2))

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return torch.atan(1 / ratio) * (2 / math.pi)


class VP(Interpolant):
    """log α = −¼(1 − t)²(β₁ − β₀) − ½(1 − t)β₀, σ = √(1 − α²): variance preserving, β₀ = 0.1, β₁ = 20."""

    name = "vp"
    beta0, beta1 = 0.1, 20.0
    training_margin, sampling_margin = 1e-5, 1e-3  # σ' is infinite at t = 1

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))  # 1 − α² without cancellation near t = 1

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self._d_log_alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -(self.alpha(t) ** 2) * self._d_log_alpha(t) / self.sigma(t)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        # σ/α = r gives −log α = ½·log(1 + r²), a quadratic in 1 − t.
        depth = torch.log1p(ratio**2) / 2
        span = self.beta1 - self.beta0
        return 1 - (torch.sqrt(self.beta0**2 / 4 + span * depth) - self.beta0 / 2) * 2 / span

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -((1 - t) ** 2) * (self.beta1 - self.beta0) / 4 - (1 - t) * self.beta0 / 2

    def _d_log_alpha(self, t: Tensor) -> Tensor:
        return (1 - t) * (self.beta1 - self.beta0) / 2 + self.beta0 / 2


_INTERPOLANTS: dict[str, type[Interpolant]] = {kind.name: kind for kind in (Linear, GVP, VP)}


def make_interpolant(name: str) -> Interpolant:
    """An interpolant by name: linear, gvp or vp.

    Raises:
        ValueError: no such interpolant.
    """
    check_choice("interpolant", name, _INTERPOLANTS)
    return _INTERPOLANTS[name]()


def check_choice(what: str, choice: str, choices: Collection[str]) -> None:
    """Raise ValueError for a choice that there is not, with those that there are."""
    if choice not in choices:
        raise ValueError(f"no {what} {choice!r}; there are {', '.join(choices)}")


def check_whole(**values: Any) -> None:
    """Raise TypeError for numbers that count something and are no whole numbers; None is none."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Integral):
            raise TypeError(f"{name} must be a whole number, got {value!r}")


def _expand(t: Tensor, x: Tensor) -> Tensor:
    """t of shape B (or a scalar) → broadcastable against x (B …)."""
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t
