"""A trained generator as a diffusers pipeline: labels in, images out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from atconv.diffusion.field import Field
from atconv.diffusion.flow_matching import solver_of
from atconv.diffusion.interpolants import check_whole, make_interpolant
from atconv.diffusion.schedulers import Generators, ODEScheduler
from atconv.models.sit import SiT

__all__ = ["Labels", "SiTPipeline", "SiTPipelineOutput", "pixels_per_latent"]

_MODULE = "pipeline"
_MODULE_TEXT = """# Where diffusers finds the class of this folder:
# DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
from atconv.diffusion import SiTPipeline  # noqa: F401
"""

Labels = int | str | Sequence[int | str] | Tensor | NDArray[np.integer]
StepCallback = Callable[["SiTPipeline", int, Tensor, dict[str, Tensor]], Mapping[str, Tensor] | None]


@dataclass
class SiTPipelineOutput(BaseOutput):
    """What a `SiTPipeline` returns."""

    images: list[Image.Image] | NDArray[np.float32] | Tensor
    """PIL images; for "np" B H W C and for "pt" B C H W in [0, 1]; for "latent" the model's own B C H W"""
    evaluations: int
    """velocity evaluations for each image (a guided one counts once)"""


class SiTPipeline(DiffusionPipeline):
    """Samples images from a SiT, in pixels or in the latents of a VAE.

    >>> pipe = SiTPipeline.from_pretrained("runs/digits-sit")
    >>> pipe(class_labels=[3, 7], guidance_scale=2.0).images
    >>> pipe.scheduler = SDEScheduler.from_config(pipe.scheduler.config, last_step="tweedie")

    Time runs from t = 0, noise, to t = 1, data. `from_pretrained` runs no code of the folder; diffusers' own
    `DiffusionPipeline.from_pretrained` finds this class with `trust_remote_code=True`.

    Args:
        transformer: the model.
        scheduler: an `ODEScheduler` or `SDEScheduler`, or a flow-matching scheduler of diffusers; default:
            the ODE by Heun's method.
        vae: decoder of the model's latents; None where it works on pixels in [−1, 1].
        interpolant: what the model was trained on: linear, gvp or vp.
        prediction: what the model predicts: velocity, score or noise.
        sample_size: height and width of its samples, in latents where there is a VAE.
        class_names: names of the labels 0, 1, ….
    """

    model_cpu_offload_seq: Any = "transformer->vae"
    _optional_components: list[str] = ["scheduler", "vae"]  # noqa: RUF012  (as diffusers declares it)
    _callback_tensor_inputs: list[str] = ["latents"]  # noqa: RUF012

    transformer: SiT
    scheduler: Any
    vae: Any
    config: Any
    num_timesteps: int
    """steps of the last call, for callbacks"""

    def __init__(
        self,
        transformer: SiT,
        scheduler: SchedulerMixin | None = None,
        vae: AutoencoderKL | None = None,
        interpolant: str = "linear",
        prediction: str = "velocity",
        sample_size: list[int] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        if scheduler is None:
            scheduler = ODEScheduler(interpolant=interpolant, prediction=prediction)
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(
            interpolant=interpolant,
            prediction=prediction,
            sample_size=sample_size or [32, 32],
            class_names=class_names,
        )
        self.vae_scale_factor = 1 if vae is None else pixels_per_latent(vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def download(cls, pretrained_model_name: Any, **options: Any) -> Any:
        """The folder of a repository on Hugging Face. That of diffusers looks there for the modules of the
        model and the scheduler, which are this package's."""
        names = ("cache_dir", "force_download", "local_files_only", "revision", "token")
        chosen: Any = {name: options.get(name) for name in names}
        return snapshot_download(pretrained_model_name, **chosen)

    @property
    def class_names(self) -> list[str]:
        """Names of the labels; their numbers where they have no names."""
        return self.config.class_names or [str(i) for i in range(self.transformer.num_classes)]

    @property
    def guidance_scale(self) -> float:
        """Of the last call. A callback changes it for the steps that follow by setting `_guidance_scale`."""
        return self._guidance_scale

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        batch_size: int = 64,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> SiTPipelineOutput | Any:
        """Sample images.

        Args:
            class_labels: class numbers or names; left out where the model has no classes.
            num_images_per_prompt: images for each label; all images, for a model without classes.
            guidance_scale: 1 is none.
            num_inference_steps: steps of a scheduler with fixed steps.
            height, width: of the images, if not the trained size.
            generator: makes the images deterministic. A list has one generator for each image, which then
                does not depend on the other images or the batch size.
            latents: noise to start from, B C H W, in place of the generator's.
            guidance_interval: times (0 noise, 1 data) between which guidance acts.
            guidance_channels: guide only the first so many channels (the release: 3); default all.
            batch_size: images at a time.
            output_type: "pil", "np" (B H W C in [0, 1]), "pt" (B C H W in [0, 1]) or "latent" (B C H W as
                the model has it).
            return_dict: return a `SiTPipelineOutput`, else a tuple of its fields.
            callback_on_step_end: (pipeline, step, t, tensors) → tensors, called after every step of every
                batch, where t is one of `scheduler.timesteps`; what it returns as "latents" takes their
                place. None leaves them as they are.
            callback_on_step_end_tensor_inputs: the tensors among its arguments: "latents".

        Raises:
            ValueError: a label out of range, a size the patch does not divide, guidance on a model without a
                null label, generators or latents of another number or shape, a scheduler of another
                interpolant or kind, or an unknown output type.
            TypeError: a number of steps, images or pixels that is not whole, or a callback that returns
                something else than tensors by name.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
        unknown = sorted(set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(f"callbacks take {self._callback_tensor_inputs}, got {unknown}")
        check_whole(
            num_images_per_prompt=num_images_per_prompt,
            num_inference_steps=num_inference_steps,
            height=height,
            width=width,
            batch_size=batch_size,
        )
        labels, count = self._repeat_labels(class_labels, num_images_per_prompt)
        if count < 1 or batch_size < 1:
            raise ValueError(f"there must be an image, and one in a batch: got {count}, {batch_size}")
        shape = (count, self.transformer.in_channels, *self._sample_size(height, width))
        if guidance_channels is not None and guidance_channels > shape[1]:
            raise ValueError(
                f"guidance_channels must be at most {shape[1]}, the model's channels, got {guidance_channels}"
            )
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"give one generator for each of {count} images, got {len(generator)}")
        if latents is not None and latents.shape != shape:
            raise ValueError(f"latents must be {shape}, got {tuple(latents.shape)}")

        model, device = self.transformer.eval(), self._execution_device
        interpolant, prediction = make_interpolant(self.config.interpolant), self.config.prediction
        solve = solver_of(self.scheduler)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self.num_timesteps = len(self.scheduler.timesteps)
        starts = range(0, count, batch_size)
        images: list[Any] = []
        evaluations = 0
        with self.progress_bar(total=len(starts) * self.num_timesteps) as bar:

            def end_step(step: int, t: Tensor, sample: Tensor) -> Tensor:
                bar.update()
                if callback_on_step_end is None:
                    return sample
                tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, sample)
                changed = callback_on_step_end(self, step, t, tensors)
                if changed is not None and not isinstance(changed, Mapping):
                    raise TypeError(
                        "callback_on_step_end must return tensors by name, such as {'latents': x}, or None; "
                        f"it returned a {type(changed).__name__}"
                    )
                field.guidance_scale = self._guidance_scale
                return (changed or {}).get("latents", sample)

            for start in starts:
                part = slice(start, min(start + batch_size, count))
                chosen = None if labels is None else labels[part]
                self._guidance_scale = guidance_scale
                field = Field(
                    model,
                    interpolant,
                    prediction,
                    chosen,
                    guidance_scale,
                    guidance_interval,
                    guidance_channels,
                )
                own = generator[part] if isinstance(generator, list) else generator
                if latents is None:
                    noise = randn_tensor((part.stop - start, *shape[1:]), own, device, torch.float32)
                else:
                    noise = latents[part].to(device)
                samples = solve(field, noise, own, end_step)
                evaluations = max(evaluations, field.evaluations)
                images.append(samples if output_type == "latent" else self._decode(samples, output_type))
        self.maybe_free_model_hooks()
        output = SiTPipelineOutput(images=_join(images), evaluations=evaluations)
        return output if return_dict else output.to_tuple()

    def save_config(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **options: Any
    ) -> None:
        """Write model_index.json, and the file that tells diffusers' own class where this one is."""
        super().save_config(save_directory, push_to_hub, **options)
        (Path(save_directory) / f"{_MODULE}.py").write_text(_MODULE_TEXT)

    def to_json_string(self) -> str:
        config = json.loads(super().to_json_string()) | {"_class_name": [_MODULE, type(self).__name__]}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def _dict_from_json_file(cls, json_file: str | PathLike[str], **options: Any) -> Any:
        """Nothing in a folder is run to find a class that is known."""
        config = super()._dict_from_json_file(json_file, **options)
        return {**config, "_class_name": cls.__name__} if isinstance(config, dict) else config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H W C of its images, at the trained size."""
        factor = self.vae_scale_factor
        channels = self.transformer.in_channels if self.vae is None else self.vae.config.out_channels
        height, width = self.config.sample_size
        return height * factor, width * factor, channels

    def get_label_ids(self, labels: Labels) -> list[int]:
        """Class numbers of numbers and names, nested or not.

        Raises:
            ValueError: an unknown name, or a number out of range.
        """
        if isinstance(labels, Tensor):
            labels = labels.tolist()
        return [self._label_id(label) for label in np.array(labels, dtype=object).ravel()]

    def _label_id(self, label: int | str) -> int:
        names, classes = self.class_names, self.transformer.num_classes
        if isinstance(label, str) and label in names:
            return names.index(label)
        number = int(label) if str(label).isdecimal() else -1
        if not 0 <= number < classes:
            raise ValueError(
                f"no class {label!r}: the model has {classes}, 0 ({names[0]}) to {classes - 1} ({names[-1]})"
                "; a generator takes classes, no images"
            )
        return number

    def _repeat_labels(self, labels: Labels | None, times: int) -> tuple[Tensor | None, int]:
        """A class number for each image (None where the model has no classes), and the number of images."""
        classes = self.transformer.num_classes
        if not classes:
            if labels is not None:
                raise ValueError("this model has no classes: give num_images_per_prompt, not class_labels")
            return None, times
        if labels is None:
            raise ValueError(f"give class_labels: numbers from 0 to {classes - 1}, or names")
        ids = torch.tensor(self.get_label_ids(labels), dtype=torch.long, device=self._execution_device)
        ids = ids.repeat_interleave(max(times, 0))
        return ids, len(ids)

    def _sample_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of samples for images of this size."""
        factor, patch = self.vae_scale_factor, self.transformer.patch_size
        sizes = []
        for size, trained in zip((height, width), self.config.sample_size, strict=True):
            if size is not None and (size < 1 or size % (factor * patch)):
                raise ValueError(
                    f"images of this model have sizes that {factor * patch} divides (patches of {patch}"
                    + (f", {factor} pixels a latent" if factor > 1 else "")
                    + f"), got {size}"
                )
            sizes.append(trained if size is None else size // factor)
        return sizes[0], sizes[1]

    def _decode(self, samples: Tensor, output_type: str) -> Any:
        """Samples B C H W, in the model's units, as images."""
        if self.vae is not None:
            latents = samples / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
            samples = self.vae.decode(latents.to(self.vae.dtype)).sample
        return self.image_processor.postprocess(samples.float(), output_type)


def pixels_per_latent(vae: Any) -> int:
    """Pixels along an edge of one latent of an AutoencoderKL."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _join(batches: list[Any]) -> Any:
    """Images of several batches, of any output type."""
    if isinstance(batches[0], Tensor):
        return torch.cat(batches)
    if isinstance(batches[0], np.ndarray):
        return np.concatenate(batches)
    return [image for batch in batches for image in batch]
