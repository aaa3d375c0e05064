"""Image generation with SiT: interpolants, samplers, training, evaluation.

>>> from atconv.tasks.generation import SiTPipeline
>>> pipe = SiTPipeline.from_pretrained("runs/digits-sit")
>>> images = pipe(class_labels=[3, 7], guidance_scale=2.0).images
"""

from atconv.diffusion.pipeline import SiTPipeline

__all__ = ["SiTPipeline"]
