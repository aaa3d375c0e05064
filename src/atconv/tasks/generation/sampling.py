"""Images from a generator: options, seeds, batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

from atconv.data.config import reject_options
from atconv.diffusion.field import check_guidance
from atconv.diffusion.interpolants import Prediction, check_choice
from atconv.diffusion.pipeline import SiTPipeline
from atconv.diffusion.schedulers import (
    ODE_ADAPTIVE,
    ODE_FIXED,
    SDE_SOLVERS,
    Diffusion,
    InterpolantScheduler,
    LastStep,
    ODEScheduler,
    SDEScheduler,
)
from atconv.engine.options import Fraction, NonNegative, Positive, PositiveInt, Steps, check_options
from atconv.engine.rng import derive_seed
from atconv.tasks.generation.samples import SampleSet

__all__ = ["SamplerConfig", "image_generators", "sample_images"]


@dataclass(kw_only=True)
class SamplerConfig:
    """Options of sampling."""

    group: ClassVar[str] = "sampler"

    sampler: str = "heun"
    """ODE: euler, midpoint, heun, heun3, rk4, explicit_adams, implicit_adams, or adaptive dopri5, dopri8,
    bosh3, fehlberg2, adaptive_heun; SDE: sde_euler (Euler–Maruyama), sde_heun"""
    steps: Steps = 50
    """steps of a fixed-step sampler; an SDE's last step comes on top"""
    guidance: NonNegative = 1.0
    """scale of classifier-free guidance; 1 is none"""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """times (0 noise, 1 data) between which guidance acts"""
    guidance_channels: PositiveInt | None = None
    """guide only the first so many channels (the release: 3); default all"""
    atol: Positive = 1e-6
    """absolute tolerance of adaptive solvers"""
    rtol: Positive = 1e-3
    """relative tolerance of adaptive solvers"""
    diffusion: Diffusion = "sigma"
    """w_t of the SDE dx = (v + w·score)dt + √(2w)dW"""
    diffusion_scale: NonNegative = 1.0
    """factor on w_t"""
    last_step: LastStep = "auto"
    """the SDE's step to the data: its mean, none, Tweedie's estimate, a velocity step; auto takes the
    mean, or Tweedie's estimate where the mean would take off more noise than there is"""
    last_step_size: Fraction = 0.04
    """time that the last step of the SDE covers"""

    def __post_init__(self) -> None:
        check_options(self)
        samplers = (*ODE_FIXED, *ODE_ADAPTIVE, *(f"sde_{solver}" for solver in SDE_SOLVERS))
        check_choice("sampler", self.sampler, samplers)
        check_guidance(self.guidance, self.guidance_interval, self.guidance_channels)
        self.scheduler().set_timesteps(self.steps)
        adaptive, sde = self.sampler in ODE_ADAPTIVE, self.sampler.startswith("sde_")
        unread = [*([] if sde else self._sde_options), *(["steps"] if adaptive else ["atol", "rtol"])]
        reject_options(self, unread, f"the sampler {self.sampler} does not read it")

    def scheduler(
        self, interpolant: str = "linear", prediction: Prediction = "velocity"
    ) -> InterpolantScheduler:
        """The scheduler of these options, for a model of this interpolant and prediction."""
        model: dict[str, Any] = {"interpolant": interpolant, "prediction": prediction}
        if self.sampler.startswith("sde_"):
            solver = self.sampler.removeprefix("sde_")
            return SDEScheduler(solver=solver, **self._sde_options, **model)
        return ODEScheduler(method=self.sampler, atol=self.atol, rtol=self.rtol, **model)

    @property
    def _sde_options(self) -> dict[str, Any]:
        names = ("diffusion", "diffusion_scale", "last_step", "last_step_size")
        return {name: getattr(self, name) for name in names}


def sample_images(
    pipeline: SiTPipeline,
    labels: list[int] | int,
    options: SamplerConfig | None = None,
    seed: int = 0,
    batch_size: int = 64,
    height: int | None = None,
    width: int | None = None,
) -> SampleSet:
    """An image for each label, or so many of a model without classes. Image i depends on (seed, i) alone.

    Raises:
        ValueError: a label, a size or guidance that the model does not have; see `SiTPipeline`.
    """
    started, options = time.perf_counter(), options or SamplerConfig()
    pipeline.scheduler = options.scheduler(pipeline.config.interpolant, pipeline.config.prediction)
    pipeline.set_progress_bar_config(disable=True)  # one bar for all batches
    count = labels if isinstance(labels, int) else len(labels)
    images, evaluations = [], 0
    for start in tqdm(range(0, count, batch_size), desc="sampling", disable=None, leave=False):
        part = range(start, min(start + batch_size, count))
        output: Any = pipeline(
            class_labels=None if isinstance(labels, int) else labels[part.start : part.stop],
            num_images_per_prompt=len(part) if isinstance(labels, int) else 1,
            guidance_scale=options.guidance,
            num_inference_steps=options.steps,
            height=height,
            width=width,
            generator=image_generators(seed, part),
            guidance_interval=options.guidance_interval,
            guidance_channels=options.guidance_channels,
            batch_size=batch_size,
            output_type="np",
        )
        images.append((output.images * 255).round().astype(np.uint8))
        evaluations = max(evaluations, output.evaluations)
    sampling = asdict(options) | {
        "seed": seed,
        "evaluations_per_image": evaluations,
        "seconds_per_image": (time.perf_counter() - started) / count,
    }
    known = None if isinstance(labels, int) else labels
    return SampleSet(np.concatenate(images), known, pipeline.config.class_names, sampling)


def image_generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator an image, of (seed, index) alone. They are on the CPU: noise is alike on every device."""
    return [torch.Generator().manual_seed(derive_seed("image", seed, index)) for index in indices]
