"""Schedulers of diffusers' flow matching, such as FlowMatchEulerDiscreteScheduler, in a `SiTPipeline`.

Theirs run from σ = 1, noise, to σ = 0, data, and step along dx/dσ. In this package's time that is the linear
interpolant with t = 1 − σ, and dx/dσ is minus its velocity. Nothing else knows of σ.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from atconv.diffusion.field import Field
from atconv.diffusion.schedulers import Generators, InterpolantScheduler

__all__ = ["solver_of"]


def solver_of(scheduler: Any) -> Callable[..., Tensor]:
    """The `solve` of our schedulers, or the same for a flow-matching scheduler of diffusers.

    Raises:
        ValueError: a scheduler whose samples are not those of an interpolant.
    """
    if isinstance(scheduler, InterpolantScheduler):
        return scheduler.solve
    config = getattr(scheduler, "config", {})
    named = type(scheduler).__name__.startswith("FlowMatch")
    flow = named or (config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction")
    if not flow or config.get("invert_sigmas") or config.get("use_dynamic_shifting"):
        raise ValueError(
            "a SiT samples with ODEScheduler or SDEScheduler of atconv.diffusion, or with a flow-matching "
            "scheduler of diffusers: FlowMatch… without dynamic shifting or inverted sigmas, or "
            "DPMSolverMultistep, UniPC, … with use_flow_sigmas=True, prediction_type='flow_prediction'; got "
            f"{type(scheduler).__name__}"
        )
    return partial(_solve, scheduler)


def _solve(
    scheduler: Any,
    field: Field,
    sample: Tensor,
    generator: Generators,
    callback: Callable[[int, Tensor, Tensor], Tensor],
) -> Tensor:
    if field.interpolant.name != "linear":
        raise ValueError(
            f"{type(scheduler).__name__} is for the interpolant 'linear', and this model has "
            f"{field.interpolant.name!r}: use ODEScheduler or SDEScheduler"
        )
    scheduler.set_timesteps(scheduler.num_inference_steps, device=sample.device)  # forgets the batch before
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if takes_generator else {}
    for index, timestep in enumerate(scheduler.timesteps):
        velocity = field(1 - scheduler.sigmas[index], sample)
        (sample,) = scheduler.step(-velocity, timestep, sample, **options, return_dict=False)
        sample = callback(index, timestep, sample)
    return sample
