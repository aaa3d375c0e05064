"""A trained generator as a diffusers pipeline: labels in, images out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from atconv.diffusion.interpolants import make_path
from atconv.diffusion.samplers import Field, ImageNoise, SamplerConfig, sample
from atconv.models.sit import SiT

__all__ = ["Drawn", "SiTPipeline", "SiTPipelineOutput", "pixels_per_latent"]


@dataclass
class SiTPipelineOutput(BaseOutput):
    """What a `SiTPipeline` returns."""

    images: list[Image.Image] | NDArray[np.uint8] | Tensor
    """PIL images; B H W C uint8 for output_type "np"; the model's own B C H W for "latent\""""
    evaluations: int
    """velocity evaluations for each image (a guided one counts once)"""


@dataclass(frozen=True)
class Drawn:
    """One batch of samples."""

    samples: Tensor
    """B C H W, in the model's units: latents, or pixels in [−1, 1]"""
    evaluations: int


class SiTPipeline(DiffusionPipeline):
    """Draws images from a SiT, in pixels or in the latents of a VAE.

    >>> pipe = SiTPipeline.from_pretrained("runs/digits-sit")
    >>> pipe(class_labels=[3, 7], guidance_scale=2.0).images

    Args:
        transformer: the model.
        vae: decoder of its latents; None where it works on pixels in [−1, 1].
        path: interpolant it was trained on: linear, gvp or vp.
        prediction: what it predicts: velocity, score or noise.
        sample_size: height and width of its samples, in latents where there is a VAE.
        latent_scale, latent_shift: samples are (latents of the VAE − shift)·scale.
        class_names: names of the labels 0, 1, ….
    """

    model_cpu_offload_seq: Any = "transformer->vae"
    _optional_components: list[str] = ["vae"]  # noqa: RUF012  (as diffusers declares it)

    transformer: SiT
    vae: Any
    config: Any

    def __init__(
        self,
        transformer: SiT,
        vae: AutoencoderKL | None = None,
        path: str = "linear",
        prediction: str = "velocity",
        sample_size: list[int] | None = None,
        latent_scale: float = 0.18215,
        latent_shift: float = 0.0,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        make_path(path)  # complains early
        self.register_modules(transformer=transformer, vae=vae)
        self.register_to_config(
            path=path,
            prediction=prediction,
            sample_size=sample_size or [32, 32],
            latent_scale=latent_scale,
            latent_shift=latent_shift,
            class_names=class_names,
        )

    @property
    def class_names(self) -> list[str]:
        """Names of the labels; their numbers where no names were given."""
        return self.config.class_names or [str(i) for i in range(self.transformer.num_classes)]

    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | NDArray[np.integer] | None = None,
        num_images: int | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        sampler: str = "heun",
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 64,
        output_type: Literal["pil", "np", "latent"] = "pil",
        **sampler_options: Any,
    ) -> SiTPipelineOutput:
        """Draw one image for each label.

        Args:
            class_labels: class numbers or names, one an image; left out where the model has no classes.
            num_images: how many, for a model without classes.
            guidance_scale: 1 is none.
            num_inference_steps: steps of a fixed-step sampler.
            sampler: see `SamplerConfig`.
            seed: image i is made from (seed, i) alone: batches and other images change nothing.
            height, width: of the images, if not the trained size.
            batch_size: images at a time.
            output_type: "pil", "np" (uint8, B H W C) or "latent" (the model's own B C H W).
            **sampler_options: further fields of `SamplerConfig`.

        Raises:
            ValueError: a label out of range, a size the patch does not divide, guidance on a model without a
                null label, an unknown sampler, option or output type.
        """
        if output_type not in ("pil", "np", "latent"):
            raise ValueError(f"output_type must be pil, np or latent, got {output_type!r}")
        known = {field.name for field in fields(SamplerConfig)} - {"sampler", "steps", "guidance"}
        unknown = sorted(set(sampler_options) - known)
        if unknown:
            raise ValueError(f"no sampler option {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        config = SamplerConfig(
            sampler=sampler, steps=num_inference_steps, guidance=guidance_scale, **sampler_options
        )
        labels = self.check_labels(class_labels, num_images)
        batches = list(self.draw(labels, config, seed, height, width, batch_size))
        samples = torch.cat([batch.samples for batch in batches])
        evaluations = max(batch.evaluations for batch in batches)
        if output_type == "latent":
            return SiTPipelineOutput(images=samples, evaluations=evaluations)
        pixels = np.concatenate([self.decode(batch.samples) for batch in batches])
        images: Any = pixels if output_type == "np" else to_pil(pixels)
        return SiTPipelineOutput(images=images, evaluations=evaluations)

    def draw(
        self,
        labels: Sequence[int | None],
        config: SamplerConfig,
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 64,
        first: int = 0,
    ) -> Iterator[Drawn]:
        """Samples in batches, in the order of `labels` (None: no class). Image i of them is made from
        (seed, first + i).

        Raises:
            ValueError: no labels, or a batch of none.
        """
        if batch_size < 1 or not labels:
            raise ValueError(f"there must be an image, and one in a batch: got {len(labels)}, {batch_size}")
        model, device = self.transformer.eval(), self.device
        shape = (model.in_channels, *self._sample_size(height, width))
        path = make_path(self.config.path)
        for start in range(0, len(labels), batch_size):
            chosen = labels[start : start + batch_size]
            known = [label for label in chosen if label is not None]
            given = torch.tensor(known, device=device) if known else None
            field = Field(
                model,
                path,
                self.config.prediction,
                given,
                config.guidance,
                config.guidance_interval,
                config.guidance_channels,
            )
            indices = range(first + start, first + start + len(chosen))
            samples = sample(field, ImageNoise(seed, indices, shape, device), config)
            yield Drawn(samples, field.evaluations)

    @torch.no_grad()
    def decode(self, samples: Tensor) -> NDArray[np.uint8]:
        """Samples B C H W → uint8 pixels B H W C."""
        if self.vae is not None:
            latents = samples / self.config.latent_scale + self.config.latent_shift
            samples = self.vae.decode(latents.to(self.vae.dtype)).sample
        scaled = (samples.float().clamp(-1, 1) + 1) * 127.5
        return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def check_labels(
        self,
        labels: int | str | Sequence[int | str] | Tensor | NDArray[np.integer] | None,
        num_images: int | None = None,
    ) -> list[int | None]:
        """One class number for each image, or None for each where the model has no classes.

        Raises:
            ValueError: labels missing, not wanted, unknown or out of range.
        """
        classes = self.transformer.num_classes
        if not classes:
            if labels is not None:
                raise ValueError("this model has no classes: give num_images in place of class_labels")
            return [None] * (1 if num_images is None else num_images)
        if num_images is not None:
            raise ValueError("num_images is for models without classes: give one label an image")
        if labels is None:
            raise ValueError(f"give class_labels: numbers from 0 to {classes - 1}, or names")
        if isinstance(labels, (Tensor, np.ndarray)):
            labels = labels.reshape(-1).tolist()
        if isinstance(labels, (int, str, np.integer)):
            labels = [labels]
        return [self._label(label) for label in labels]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H W C of its images, at the trained size."""
        factor = 1 if self.vae is None else pixels_per_latent(self.vae)
        channels = self.transformer.in_channels if self.vae is None else self.vae.config.out_channels
        height, width = self.config.sample_size
        return height * factor, width * factor, channels

    def _label(self, label: int | str) -> int:
        names, classes = self.class_names, self.transformer.num_classes
        if isinstance(label, str) and label in names:
            return names.index(label)
        number = int(label) if str(label).isdecimal() else -1
        if not 0 <= number < classes:
            raise ValueError(
                f"no class {label!r}: the model has {classes}, 0 ({names[0]}) to {classes - 1} ({names[-1]})"
            )
        return number

    def _sample_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of samples for images of this size."""
        factor = 1 if self.vae is None else pixels_per_latent(self.vae)
        sides = []
        for given, trained in zip((height, width), self.config.sample_size, strict=True):
            side = trained if given is None else given // factor
            patch = self.transformer.patch_size
            if given is not None and (given < 1 or given % (factor * patch)):
                raise ValueError(
                    f"images of this model have sides that {factor * patch} divides (patches of {patch}"
                    + (f", {factor} pixels a latent" if factor > 1 else "")
                    + f"), got {given}"
                )
            sides.append(side)
        return sides[0], sides[1]


def pixels_per_latent(vae: Any) -> int:
    """Pixels along a side of one latent of an AutoencoderKL."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def to_pil(pixels: NDArray[np.uint8]) -> list[Image.Image]:
    """uint8 B H W C of 1 or 3 channels → PIL images."""
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]
