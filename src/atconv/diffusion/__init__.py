"""Diffusion without any run: interpolants, schedulers, the pipeline, the likelihood.

>>> from atconv.diffusion import SDEScheduler, SiTPipeline
>>> pipe = SiTPipeline.from_pretrained("runs/digits-sit")
>>> pipe.scheduler = SDEScheduler.from_config(pipe.scheduler.config)
>>> pipe(class_labels=[3, 7], guidance_scale=2.0).images

Time runs from t = 0, noise, to t = 1, data, everywhere in this package. (Most of diffusers counts the other
way, and in 1000 steps.)
"""

from atconv.extras import name_missing_extra

with name_missing_extra():
    from atconv.diffusion.field import Field
    from atconv.diffusion.interpolants import make_interpolant
    from atconv.diffusion.likelihood import bits_per_dim, log_likelihood
    from atconv.diffusion.pipeline import SiTPipeline
    from atconv.diffusion.schedulers import ODEScheduler, SDEScheduler

__all__ = [
    "Field",
    "ODEScheduler",
    "SDEScheduler",
    "SiTPipeline",
    "bits_per_dim",
    "log_likelihood",
    "make_interpolant",
]
