"""The likelihood: densities that are known, estimates, bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from atconv.diffusion.field import Field
from atconv.diffusion.interpolants import GVP, VP, Interpolant, Linear
from atconv.diffusion.likelihood import bits_per_dim, log_likelihood
from atconv.diffusion.schedulers import ODEScheduler, SDEScheduler
from support.gaussian import Gaussian, X, gaussian_field
from support.tiny_sit import tiny_sit

each_interpolant = pytest.mark.parametrize("interpolant", [Linear(), GVP(), VP()], ids=lambda kind: kind.name)


def normal_log_density(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.distributions.Normal(mean, std).log_prob(x).flatten(1).sum(1)


@each_interpolant
@pytest.mark.parametrize("method", [None, "rk4"], ids=["dopri5", "rk4"])
def test_the_likelihood_of_normal_data_is_its_density(interpolant: Interpolant, method: str | None) -> None:
    x, field = 0.2 * torch.randn(6, 2, 3, 3), Field(Gaussian(interpolant, mean=0.0), interpolant)
    scheduler = None if method is None else ODEScheduler(method=method, interpolant=interpolant.name)
    computed = log_likelihood(field, x, scheduler, 60)
    end = torch.tensor(interpolant.interval("velocity", sampling=True)[1])
    std = float(Gaussian(interpolant, mean=0.0).variance(end).sqrt())
    torch.testing.assert_close(computed, normal_log_density(x, 0.0, std), rtol=0, atol=0.01)


class Rotation(nn.Module):
    """v = M x over two channels, at all times."""

    matrix = torch.tensor([[0.4, -0.9], [0.3, -0.1]])

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", self.matrix, x)


def test_the_estimated_likelihood_is_right_on_average() -> None:
    """Of a field that mixes channels one estimate is off; the density is that of N(0, eᴹ eᴹᵀ)."""
    x = torch.randn(1, 2, 3, 3)
    rk4, generator = ODEScheduler(method="rk4"), torch.Generator().manual_seed(0)
    repeated = x.expand(400, -1, -1, -1).contiguous()
    estimates = log_likelihood(Field(Rotation(), Linear()), repeated, rk4, 8, generator)
    back = torch.einsum("ij,bjhw->bihw", torch.matrix_exp(-Rotation.matrix), x)
    expected = normal_log_density(back, 0.0, 1.0) - 9 * Rotation.matrix.trace()
    spread = 3 * abs(0.3 - 0.9)  # of one estimate: 9 positions, each ±(M₀₁ + M₁₀)
    assert float(estimates.std()) == pytest.approx(spread, rel=0.15)
    assert float(estimates.mean()) == pytest.approx(float(expected), abs=4 * spread / math.sqrt(400))
    other = log_likelihood(Field(Rotation(), Linear()), repeated, rk4, 8, generator)
    assert not torch.equal(estimates, other)


def test_the_likelihood_of_a_sit_is_finite_and_leaves_no_gradients() -> None:
    model = tiny_sit(learn_sigma=False, in_channels=1)
    field = Field(model, Linear(), "velocity", torch.tensor([1, 2]))
    estimates = log_likelihood(field, torch.randn(2, 1, 4, 4), ODEScheduler(method="euler"), 3)
    assert estimates.isfinite().all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_guided_field_and_an_sde_have_no_likelihood() -> None:
    _, guided = gaussian_field(2.0)
    _, plain = gaussian_field(1.0)
    with pytest.raises(ValueError, match="needs an ODE scheduler and no guidance"):
        log_likelihood(guided, X)
    with pytest.raises(ValueError, match="needs an ODE scheduler and no guidance"):
        log_likelihood(plain, X, SDEScheduler())  # type: ignore[arg-type]


def test_numbers_that_are_anything_alike_cost_eight_bits() -> None:
    """Uniform on [−1, 1]: density ½ a number, 256 levels."""
    dims = 12
    bits = bits_per_dim(torch.tensor([-dims * math.log(2), 0.0]), dims)
    assert bits.tolist() == pytest.approx([8.0, 7.0])
    assert float(bits_per_dim(torch.tensor([-dims * math.log(2)]), dims, levels=2)) == pytest.approx(1.0)
