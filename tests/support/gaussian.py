"""Normally distributed data: what a perfect network predicts of it is known in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from atconv.diffusion.field import Field
from atconv.diffusion.interpolants import Interpolant, Linear, Prediction

MEAN, STD = 0.5, 0.3


class Gaussian(nn.Module):
    """The best prediction at (x, t) for data N(mean, std²), each number on its own.

    With labels, class c has the mean `mean + c`, and `null_label` the mean `mean`.
    """

    null_label = 9

    def __init__(
        self, interpolant: Interpolant, kind: Prediction = "velocity", mean: float = MEAN, std: float = STD
    ) -> None:
        super().__init__()
        self.interpolant, self.kind, self.mean, self.std = interpolant, kind, mean, std
        self.batches: list[int] = []
        """sizes of the batches it was called with"""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        mean: float | Tensor = self.mean
        if labels is not None:
            mean = mean + torch.where(labels == self.null_label, 0, labels).reshape(t.shape)
        alpha, sigma = self.interpolant.alpha(t), self.interpolant.sigma(t)
        excess = (x - alpha * mean) / self.variance(t)
        noise, data = sigma * excess, mean + alpha * self.std**2 * excess
        if self.kind == "velocity":
            return self.interpolant.d_alpha(t) * data + self.interpolant.d_sigma(t) * noise
        return noise if self.kind == "noise" else -excess

    def variance(self, t: Tensor) -> Tensor:
        """Of x_t."""
        return (self.interpolant.alpha(t) * self.std) ** 2 + self.interpolant.sigma(t) ** 2

    def transported(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the ODE takes x between two times: standardized values stay what they are."""
        first, last = torch.tensor(start), torch.tensor(end)
        standard = (x - self.interpolant.alpha(first) * self.mean) / self.variance(first).sqrt()
        return self.interpolant.alpha(last) * self.mean + self.variance(last).sqrt() * standard

    def expected_data(self, x: Tensor, t: Tensor) -> Tensor:
        """Mean of the data that x_t came from."""
        alpha = self.interpolant.alpha(t)
        return self.mean + alpha * self.std**2 * (x - alpha * self.mean) / self.variance(t)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        return -(x - self.interpolant.alpha(t) * self.mean) / self.variance(t)


def gaussian_field(guidance: float, **options: Any) -> tuple[Gaussian, Field]:
    """A model of three labels, and its field at them."""
    model = Gaussian(Linear())
    return model, Field(model, Linear(), "velocity", torch.tensor([1, 2, 3]), guidance, **options)


X = torch.linspace(-1, 1, 3 * 4 * 2 * 2).reshape(3, 4, 2, 2)
