"""The likelihood of a sample under a model, by Hutchinson's estimator (arXiv 2011.13456)."""

from __future__ import annotations

import math

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from atconv.diffusion.field import Field
from atconv.diffusion.schedulers import Generators, ODEScheduler

__all__ = ["bits_per_dim", "log_likelihood"]


def log_likelihood(
    field: Field,
    x: Tensor,
    scheduler: ODEScheduler | None = None,
    num_inference_steps: int = 50,
    generator: Generators = None,
) -> Tensor:
    """log p(x) in nats for each sample, by following the ODE from data (t = 1) to noise (t = 0).

    The divergence of the velocity is estimated with one random ±1 vector a sample (Hutchinson): unbiased,
    with a spread that averaging over generators or samples narrows.

    Args:
        field: the model's velocity, unguided.
        x: samples B C H W, in the model's units.
        scheduler: the ODE solver; default dopri5 at tolerances of 1e-5.
        num_inference_steps: steps, where the solver has fixed ones.
        generator: of the random vectors; a list holds one for each sample.

    Returns:
        B log densities.

    Raises:
        ValueError: an SDE scheduler, or a guided field, which has no density.
    """
    names = {"interpolant": field.interpolant.name, "prediction": field.prediction}
    if scheduler is None:
        scheduler = ODEScheduler(method="dopri5", atol=1e-5, rtol=1e-5, **names)
    if not isinstance(scheduler, ODEScheduler) or field.guidance_scale != 1:
        raise ValueError("the likelihood needs an ODE scheduler and no guidance")
    scheduler.check_field(field)
    scheduler.set_timesteps(num_inference_steps, x.device)
    probes = randn_tensor(x.shape, generator, x.device).sign().to(x.dtype)

    def augmented(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = state[0].detach().requires_grad_()
            velocity = field(t, at)
            (gradient,) = torch.autograd.grad(velocity, at, probes)
        return velocity.detach(), (gradient * probes).flatten(1).sum(1)

    with torch.no_grad():
        noise, change = scheduler.integrate(augmented, (x, x.new_zeros(len(x))), scheduler.times.flip(0))
        # `change` is ∫ div v dt from end to start: minus the integral along the flow.
        sigma = field.interpolant.sigma(torch.tensor(field.times[0]))
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
