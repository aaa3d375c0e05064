"""Schedulers of diffusers' flow matching, such as FlowMatchEulerDiscreteScheduler, in a `SiTPipeline`.

Theirs run from σ = 1, noise, to σ = 0, data, and step along dx/dσ. In this package's time that is the linear
interpolant with t = 1 − σ, and dx/dσ is minus its velocity. Nothing else knows of σ.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atconv.diffusion.field import Field
from atconv.diffusion.schedulers import Generators, InterpolantScheduler

__all__ = ["FlowMatching", "solver_of"]


class FlowMatching:
    """A flow-matching scheduler of diffusers, driven as an `InterpolantScheduler` is."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters

    @property
    def timesteps(self) -> Tensor:
        """As the scheduler counts them: 1000·σ."""
        timesteps: Tensor = self.scheduler.timesteps
        return timesteps

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        self.scheduler.set_timesteps(num_inference_steps, device=device)

    def solve(
        self,
        field: Field,
        sample: Tensor,
        generator: Generators = None,
        callback: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """From noise to data; see `InterpolantScheduler.solve`."""
        if field.interpolant.name != "linear":
            raise ValueError(
                f"{type(self.scheduler).__name__} is for the interpolant 'linear', and this model has "
                f"{field.interpolant.name!r}: use ODEScheduler or SDEScheduler"
            )
        self.set_timesteps(self.scheduler.num_inference_steps, sample.device)  # forgets the batch before
        options = {"generator": generator} if self._takes_generator else {}
        for index, timestep in enumerate(self.timesteps):
            velocity = field(1 - self.scheduler.sigmas[index], sample)
            (sample,) = self.scheduler.step(-velocity, timestep, sample, **options, return_dict=False)
            if callback is not None:
                sample = callback(index, timestep, sample)
        return sample


def solver_of(scheduler: Any) -> InterpolantScheduler | FlowMatching:
    """What leads a pipeline with this scheduler from noise to data.

    Raises:
        ValueError: a scheduler whose samples are not those of an interpolant.
    """
    if isinstance(scheduler, InterpolantScheduler):
        return scheduler
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
    return FlowMatching(scheduler)
