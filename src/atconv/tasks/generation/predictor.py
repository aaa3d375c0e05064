"""A trained generator: the images it makes, and how good they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from diffusers.utils.logging import disable_progress_bar
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from typing_extensions import Self

from atconv.data.config import DataConfig
from atconv.data.formats import open_sources
from atconv.data.images import PrepareImage
from atconv.data.run_images import is_own_data, known_splits
from atconv.data.splits import Split, load_splits
from atconv.diffusion.interpolants import Prediction
from atconv.diffusion.pipeline import Labels, SiTPipeline
from atconv.diffusion.schedulers import ODEScheduler, SDEScheduler
from atconv.engine.options import Pixels
from atconv.engine.predictor import Predictor, Result
from atconv.engine.reading import check_weights, naming_damage, read_json
from atconv.engine.recipes import read_config
from atconv.engine.run import Run
from atconv.models.sit import SiT
from atconv.tasks.common.model_file import check_classes
from atconv.tasks.generation.config import GenerationConfig
from atconv.tasks.generation.data import fit_image, scale_pixels
from atconv.tasks.generation.evaluation import Comparison, EvaluationConfig
from atconv.tasks.generation.latents import is_latents, latent_splits
from atconv.tasks.generation.metrics import GenerationMetrics
from atconv.tasks.generation.samples import SampleSet, to_pil
from atconv.tasks.generation.sampling import SamplerConfig, sample_images

__all__ = ["GeneratedImage", "GenerationPredictor"]

_Component = tuple[str, str]  # module and class
_MODEL_INDEX: dict[str, Any] = {
    "sample_size": tuple[Pixels, Pixels],
    "class_names": list[str] | None,
    "interpolant": Literal["linear", "gvp", "vp"],
    "prediction": Prediction,
    "transformer": _Component,
    "scheduler": _Component,
    "vae": list[str | None] | None,
}


@dataclass(frozen=True, kw_only=True)
class GeneratedImage(Result):
    """One image that the model made."""

    label: str | None
    """name of its class; None of a model without classes"""
    pixels: Image.Image

    def to_dict(self) -> dict[str, Any]:
        """All but the pixels, for JSON."""
        return {"image": self.image, "label": self.label}


class GenerationPredictor(Predictor[GeneratedImage, GenerationMetrics]):
    """A trained generator.

    >>> predictor = atconv.load("runs/digits-sit")
    >>> predictor([3, 7], options=SamplerConfig(guidance=2.0))[0].pixels
    >>> predictor.pipeline                                             # the diffusers pipeline
    >>> predictor.evaluate(features="runs/digits").frechet_distance

    Its `transform` makes of an image what a model on pixels learns from: C H W in [−1, 1].
    """

    task = "generation"
    metrics_class = GenerationMetrics
    config: GenerationConfig | None

    @classmethod
    def open(cls, run: Run) -> Self:
        """The generator of a run.

        Raises:
            ValueError: it is not a generation run, has no model yet, or its model is damaged.
        """
        path = run.path
        if not (path / "model_index.json").is_file():
            raise ValueError(f"{path} is not a generation run: it was not made by atconv generate train")
        index = read_json(path / "model_index.json", _MODEL_INDEX)
        if not (path / "transformer" / "diffusion_pytorch_model.safetensors").is_file():
            raise run.no_model()
        _check_scheduler(path, index)
        _check_transformer(path / "transformer", index)
        disable_progress_bar()  # diffusers shows one for the files of a model
        with naming_damage(path / "model_index.json", "the files that it names make no pipeline"):
            pipeline = SiTPipeline.from_pretrained(path)
        config = None
        if run.config.is_file():
            config = read_config(run, GenerationConfig, "generation")
        return cls(run, pipeline, config)

    def __init__(self, run: Run, pipeline: SiTPipeline, config: GenerationConfig | None) -> None:
        height, _, channels = pipeline.image_shape
        transform = _ToPixels(height, channels)
        super().__init__(run, pipeline.transformer, transform, pipeline.class_names, config)
        self.pipeline = pipeline

    def to(self, device: str | torch.device) -> Self:
        super().to(device)
        self.pipeline.to(self.device)
        return self

    def __call__(self, class_labels: Labels | None = None, **options: Any) -> list[GeneratedImage]:
        """New images, as PIL images with the names of their classes. `options` are those of `sample`."""
        samples = self.sample(class_labels, **options)
        labels = samples.labels
        names = [None] * len(samples) if labels is None else [self.classes[label] for label in labels]
        return [
            GeneratedImage(image=str(i), label=name, pixels=to_pil(image))
            for i, (image, name) in enumerate(zip(samples.images, names, strict=True))
        ]

    def sample(
        self,
        class_labels: Labels | None = None,
        per_class: int = 1,
        options: SamplerConfig | None = None,
        seed: int = 0,
        batch_size: int = 64,
        height: int | None = None,
        width: int | None = None,
    ) -> SampleSet:
        """New images, as arrays.

        Args:
            class_labels: class numbers or names; all classes by default.
            per_class: images of each; all images, for a model without classes.
            options: sampler, steps, guidance.
            seed: image i is made from (seed, i).
            batch_size: images at a time.
            height, width: of the images, if not the trained size.

        Raises:
            ValueError: an unknown class, a size the patch does not divide, or guidance on a model without a
                null label.
        """
        labels: list[int] | int = per_class
        if self.classes:
            ids = range(len(self.classes)) if class_labels is None else class_labels
            labels = [i for i in self.pipeline.get_label_ids(ids) for _ in range(per_class)]
        elif class_labels is not None:
            raise ValueError(f"{self.run.path} has no classes: leave class_labels out; it takes no images")
        return sample_images(self.pipeline, labels, options, seed, batch_size, height, width)

    def evaluate(  # type: ignore[override]
        self,
        data: str | None = None,
        split: Literal["train", "val", "test", "all"] = "train",
        options: SamplerConfig | None = None,
        **evaluation: Any,
    ) -> GenerationMetrics:
        """Metrics of new images, evenly over the classes, compared with real ones.

        Published FID compares with the training images, and so does this by default; other tasks are
        evaluated on held-out images.

        Args:
            data: DATA as in training, or an .npz file of real images; the run's own by default.
            split: the split of DATA to compare with.
            options: sampler, steps, guidance.
            **evaluation: the other fields of `EvaluationConfig`: features, images, real_images, …

        Raises:
            FileNotFoundError, ValueError: no such data or features, or too few images.
        """
        config, trained = EvaluationConfig(split=split, **evaluation), self.config
        if data is None and trained is None:
            raise ValueError(f"{self.run.path} has no config.yaml that names its data: give data")
        data = trained.data if data is None and trained is not None else str(data)
        shape, own = self.pipeline.image_shape, self._own_splits(data, config.data_root)
        comparison = Comparison(data, shape, config, self.device, of_run=True, own=own)
        labels = [i % len(self.classes) for i in range(config.images)] if self.classes else None
        per_class = config.images if labels is None else 1
        samples = self.sample(labels, per_class, options, config.seed, config.batch_size)
        return comparison(samples, mirrored=trained is not None and trained.hflip > 0)

    def export(self, **options: Any) -> Any:
        from atconv.tasks.common.export import export
        from atconv.tasks.generation.export import GenerationExporter

        return export(GenerationExporter(self), **options)

    def _own_splits(self, data: str, data_root: str | None) -> dict[str, Split] | None:
        """The splits of the run where DATA is what it was trained on, a copy or a part of it."""
        if self.config is not None and is_own_data(self.config, data):
            splits = latent_splits(data) if is_latents(data) else load_splits(self.config, self.run.path)
            return splits.by_name
        if data.endswith(".npz") or is_latents(data):
            return None
        sources = open_sources(DataConfig(data=data, data_root=data_root))
        if list(sources) != ["train"]:
            return None
        known = known_splits(self.run, sources["train"])
        del known["all"]
        return known or None


def _types(init: Any) -> dict[str, Any]:
    """Types of the arguments of a diffusers class, which its JSON file has by name."""
    return {name: kind for name, kind in get_type_hints(init).items() if name != "return"}


def _check_scheduler(path: Path, index: dict[str, Any]) -> None:
    """Raise ValueError where a scheduler's file is damaged, or was made for another model."""
    file = path / "scheduler" / "scheduler_config.json"
    kind = {each.__name__: each for each in (ODEScheduler, SDEScheduler)}.get(index["scheduler"][1])
    if kind is None:  # one of diffusers
        return
    content = read_json(file, _types(kind.__init__))
    for name in ("interpolant", "prediction"):
        if content[name] != index[name]:
            raise ValueError(
                f"{file} has {name} {content[name]!r}, {path / 'model_index.json'} has {index[name]!r}: one "
                "of them is damaged"
            )
    with naming_damage(file):
        kind.from_config(content)


def _check_transformer(folder: Path, index: dict[str, Any]) -> None:
    """Raise ValueError where config.json is damaged, or the weights or model_index.json do not fit it.
    diffusers would leave weights out, or make up others."""
    file, sample_size, names = folder / "config.json", index["sample_size"], index.get("class_names")
    content = read_json(file, _types(SiT.__init__))
    with naming_damage(file, "its values make no SiT"), torch.device("meta"):
        model = SiT.from_config(content)
    with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    check_weights(model, shapes, file)
    with naming_damage(folder.parent / "model_index.json"):
        if names:
            check_classes(names, model.num_classes)
        if any(size % model.patch_size for size in sample_size):
            raise ValueError(f"sample_size {sample_size} is no multiple of the patches of {model.patch_size}")


class _ToPixels:
    """Any image → C H W in [−1, 1], square."""

    def __init__(self, size: int, channels: int) -> None:
        self.size, self.prepare = size, PrepareImage(channels)

    def __call__(self, image: Image.Image) -> Tensor:
        return scale_pixels(fit_image(self.prepare(image), self.size))
