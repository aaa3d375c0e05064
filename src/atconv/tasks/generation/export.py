"""A generator as a file: its velocity at (x, t). The sampler is a loop around it."""

from __future__ import annotations

import functools
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from atconv.deploy import Call, relative_error
from atconv.diffusion.interpolants import make_interpolant
from atconv.diffusion.schedulers import ODEScheduler
from atconv.tasks.common.exporter import Agreement, Exporter

__all__ = ["GenerationExporter"]

_STEPS = 4


class GenerationExporter(Exporter):
    """x (B C H W), t (B) and, of a model with classes, labels (B) → velocity (B C H W)."""

    output_names = ("velocity",)

    @functools.cached_property
    def graph(self) -> nn.Module:
        return _Velocity(self.model, self._pipeline.config).eval()

    @property
    def input_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("x", "t", "labels") if self._classes else ("x", "t")

    @property
    def weights(self) -> Path:
        return self.predictor.run.path / "transformer" / "diffusion_pytorch_model.safetensors"

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width = self._pipeline.config.sample_size
        return self._pipeline.transformer.in_channels, height, width

    @property
    def step(self) -> int:  # type: ignore[override]
        return self._pipeline.transformer.patch_size

    @property
    def traced(self) -> tuple[int, int]:  # type: ignore[override]
        return 12 * self.step, 16 * self.step

    @property
    def _pipeline(self) -> Any:
        return self.predictor.pipeline

    @property
    def _classes(self) -> int:
        return self._pipeline.transformer.num_classes

    def inputs(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        [x] = super().inputs(batch, height, width)
        labels = (torch.arange(batch) % self._classes,) if self._classes else ()
        return x, torch.linspace(0.1, 0.9, batch), *labels

    def describe(self) -> dict[str, Any]:
        pipeline = self._pipeline
        axes = "batch channels height width"
        space = "pixels in -1…1" if pipeline.vae is None else "latents of the VAE in the run's folder vae"
        inputs: dict[str, Any] = {
            "x": {"dtype": "float32", "axes": axes, "channels": self.shape[0], "size": list(self.shape[1:])},
            "t": {"dtype": "float32", "axes": "batch", "values": "0 is noise, 1 is data"},
            "labels": {
                "dtype": "int64",
                "axes": "batch",
                "values": "index into classes",
                "null_label": pipeline.transformer.null_label,
            },
        }
        start, end = self._interval
        return {
            "inputs": {name: inputs[name] for name in self.input_names},
            "outputs": {"velocity": {"axes": axes}},
            "sampling": {"equation": "dx = velocity(x, t) dt", "start": start, "end": end, "space": space},
        }

    def images(self, data: str | None, data_root: str | None, count: int) -> list[Image.Image]:
        if (data, data_root) != (None, None):
            raise ValueError("a generator is compared with its own samples: leave data and data_root out")
        return []

    def agreement(self, call: Call, images: list[Image.Image]) -> Agreement:
        """Samples by Heun's method, of the pipeline and of a loop around the file."""
        pipeline = self._pipeline
        noise, _, *labels = self.inputs(min(self._classes, 4) or 2, *self.shape[1:])
        names = ("interpolant", "prediction")
        pipeline.scheduler = ODEScheduler(**{name: pipeline.config[name] for name in names})
        pipeline.set_progress_bar_config(disable=True)
        of = {"class_labels": labels[0]} if labels else {"num_images_per_prompt": len(noise)}
        steps = {"num_inference_steps": _STEPS, "output_type": "latent"}
        expected = pipeline(latents=noise, **of, **steps).images.cpu()
        x = noise
        for start, end in pairwise(torch.linspace(*self._interval, _STEPS + 1)):
            slope = call(x, start.expand(len(x)), *labels)
            ahead = call(x + (end - start) * slope, end.expand(len(x)), *labels)
            x = x + (end - start) / 2 * (slope + ahead)
        error = relative_error(x, expected)
        if not error <= max(1e-3, self.tolerance):
            raise ValueError(f"samples differ by {error:.1e}, relative to the largest value")
        return {f"sample after {_STEPS} steps, relative": error}

    @property
    def _interval(self) -> tuple[float, float]:
        config = self._pipeline.config
        return make_interpolant(config.interpolant).interval(config.prediction, sampling=True)


class _Velocity(nn.Module):
    """What a model predicts, as a velocity."""

    def __init__(self, model: nn.Module, config: Any) -> None:
        super().__init__()
        self.model, self.prediction = model, config.prediction
        self.interpolant = make_interpolant(config.interpolant)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.interpolant.to_velocity(self.model(x, t, labels), self.prediction, x, t)
