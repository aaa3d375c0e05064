"""A trained generator: the images it makes, and how good they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from diffusers.utils.logging import disable_progress_bar
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import ConcatDataset
from typing_extensions import Self

from atconv.data.config import DataConfig
from atconv.data.images import PrepareImage
from atconv.data.splits import Split, load_splits, open_sources
from atconv.diffusion.pipeline import Labels, SiTPipeline
from atconv.engine.predictor import ImageLike, Predictor, Result
from atconv.engine.recipes import read_config
from atconv.engine.run import Run
from atconv.io import write_json
from atconv.tasks.generation.config import GenerationConfig
from atconv.tasks.generation.data import fit_image, scale_pixels
from atconv.tasks.generation.features import open_features
from atconv.tasks.generation.latents import is_latents, latent_splits
from atconv.tasks.generation.metrics import GenerationMetrics, compare, memorization
from atconv.tasks.generation.samples import (
    ImageSet,
    SampleSet,
    SplitImages,
    random_subset,
    read_samples,
    to_pil,
)
from atconv.tasks.generation.sampling import SampledImages, SamplerConfig, sample_images

__all__ = ["GeneratedImage", "GenerationPredictor", "Part", "choose_split", "open_images"]

Part = Literal["auto", "train", "val", "test", "all"]


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

    @classmethod
    def open(cls, run: Run) -> Self:
        """The generator of a run.

        Raises:
            ValueError: it is not a generation run, has no model yet, or its model is damaged.
        """
        path = run.path
        if not (path / "model_index.json").is_file():
            raise ValueError(f"{path} is not a generation run: it was not made by atconv generate train")
        if not (path / "transformer" / "diffusion_pytorch_model.safetensors").is_file():
            raise ValueError(
                f"{path} has no model yet: its first epoch has not finished. "
                f"Continue it with atconv generate train --resume {path}"
            )
        disable_progress_bar()  # diffusers shows one for the files of a model
        try:
            pipeline = SiTPipeline.from_pretrained(path)
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"the model in {path} is damaged: {str(error).partition(chr(10))[0]}") from error
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

    def __call__(  # type: ignore[override]
        self,
        class_labels: Labels | None = None,
        per_class: int = 1,
        options: SamplerConfig | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[GeneratedImage]:
        """New images.

        Args:
            class_labels: class numbers or names; all classes by default.
            per_class: images of each; all images, for a model without classes.
            options: sampler, steps, guidance.
            seed: image i is made from (seed, i).
            batch_size: images at a time.

        Raises:
            ValueError: an unknown class, or guidance on a model without a null label.
        """
        labels: list[int] | None = None
        if self.classes:
            ids = range(len(self.classes)) if class_labels is None else class_labels
            labels = [i for i in self.pipeline.get_label_ids(ids) for _ in range(per_class)]
        elif class_labels is not None:
            raise ValueError(f"{self.run.path} has no classes: leave class_labels out")
        count = per_class if labels is None else len(labels)
        images = self.sample(labels, count, options, seed, batch_size).images
        names = [None] * count if labels is None else [self.classes[i] for i in labels]
        return [
            GeneratedImage(image=str(i), label=name, pixels=to_pil(image))
            for i, (image, name) in enumerate(zip(images, names, strict=True))
        ]

    def sample(
        self,
        labels: Sequence[int] | None,
        count: int,
        options: SamplerConfig | None = None,
        seed: int = 0,
        batch_size: int = 64,
        height: int | None = None,
        width: int | None = None,
    ) -> SampledImages:
        """New images as one array, and what they cost; see `sample_images`."""
        options = options or SamplerConfig()
        return sample_images(self.pipeline, labels, count, options, seed, batch_size, height, width)

    def evaluate(  # type: ignore[override]
        self,
        data: str | None = None,
        split: Part = "auto",
        features: str = "inception",
        images: int = 10_000,
        real_images: int = 50_000,
        check_memorization: bool = False,
        data_root: str | None = None,
        inception_weights: str | None = None,
        options: SamplerConfig | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> GenerationMetrics:
        """Metrics of new images, evenly over the classes, compared with real ones.

        Args:
            data: DATA as in training, or an .npz file of real images; the run's own by default.
            split: train, val, test or all; "auto" takes train.
            features: "inception", or the folder of a classification run, for its features.
            images: how many images to make.
            real_images: compare with at most so many, chosen at random.
            check_memorization: look for copies of training images, too.
            data_root: folder of a named timm dataset, if not the run's.
            inception_weights: file of the Inception network; default: torch.hub's, or a download.
            options: sampler, steps, guidance.
            seed: of the images.
            batch_size: images at a time.

        Raises:
            FileNotFoundError, ValueError: no such data or features, or too few images.
        """
        model = open_features(features, inception_weights, self.device)
        data = self._own_data() if data is None else data
        sets = open_images(data, data_root, self.pipeline.image_shape, self)
        name, real = choose_split(sets, split, data)
        if check_memorization and not {"train", "val"} <= set(sets):
            raise ValueError(
                "memorization is looked for in samples of a run, among the images it was trained on"
            )
        options = options or SamplerConfig()
        count = len(self.classes)
        labels = [i % count for i in range(images)] if count else None
        sampled = self.sample(labels, images, options, seed, batch_size)
        samples = SampleSet(sampled.images, labels, self.pipeline.config.class_names)
        metrics = compare(samples, random_subset(real, real_images, seed), model, batch_size, name)
        copied = None
        if check_memorization:
            held_out: ImageSet = ConcatDataset([sets[part] for part in sets if part != "train"])
            config: Any = self.config
            copied = memorization(samples, sets["train"], held_out, mirrored=config.hflip > 0)
        cost = {
            "seed": seed,
            "evaluations_per_image": sampled.evaluations,
            "seconds_per_image": sampled.seconds / images,
        }
        return replace(metrics, memorization=copied, sampling={**asdict(options), **cost})

    def save_evaluation(
        self, metrics: GenerationMetrics, folder: Path, about: dict[str, Any] | None = None
    ) -> None:
        """Write metrics.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "metrics.json", {**(about or {}), **metrics.to_dict()})

    def predict(self, images: Iterable[ImageLike], batch_size: int = 32, **options: Any) -> Iterator[Any]:
        self._makes_images()

    def open_image(self, image: ImageLike) -> Image.Image:
        self._makes_images()

    def infer(self, images: Sequence[Image.Image], names: Sequence[str], **options: Any) -> list[Any]:
        self._makes_images()

    def unreadable(self, name: str, error: str) -> GeneratedImage:
        self._makes_images()

    def _makes_images(self) -> NoReturn:
        raise ValueError(
            f"{self.run.path} is a generation run: it makes images and predicts nothing of yours; call "
            "predictor(class_labels)"
        )

    def _own_data(self) -> str:
        if self.config is None:
            raise ValueError(f"{self.run.path} has no config.yaml that names its data: give data")
        config: Any = self.config
        return str(config.data)


class _ToPixels:
    """Any image → C H W in [−1, 1], square."""

    def __init__(self, size: int, channels: int) -> None:
        self.size, self.prepare = size, PrepareImage(channels)

    def __call__(self, image: Image.Image) -> Tensor:
        return scale_pixels(torch.from_numpy(fit_image(self.prepare(image), self.size)).permute(2, 0, 1))


def open_images(
    data: str, data_root: str | None, shape: Sequence[int], predictor: GenerationPredictor | None = None
) -> dict[str, ImageSet]:
    """The splits of DATA, at the size of the samples (H W C). A run's own splits where DATA is its own."""
    if data.endswith(".npz"):
        return {"all": read_samples(Path(data))}
    if shape[0] != shape[1]:
        raise ValueError(f"real images are cropped square, and the samples are {shape[0]} × {shape[1]}")
    config: Any = None if predictor is None else predictor.config
    if is_latents(data):
        splits = latent_splits(data).by_name
    elif predictor is not None and config is not None and _same_data(config.data, data):
        splits = load_splits(config, predictor.run.path).by_name
    else:
        sources = open_sources(DataConfig(data=data, data_root=data_root))
        splits = {name: Split(source, list(range(len(source)))) for name, source in sources.items()}
    return {name: SplitImages(split, shape[0], shape[2]) for name, split in splits.items()}


def choose_split(sets: dict[str, ImageSet], split: Part, data: str) -> tuple[str, ImageSet]:
    """A split by name. DATA that came without splits has only "all"."""
    if split == "all" or len(sets) == 1:
        return "all", ConcatDataset(list(sets.values()))
    name = "train" if split == "auto" else split
    if name not in sets:
        raise ValueError(f"{data} has no {name} split, only {', '.join(sets)}: choose one with --split")
    return name, sets[name]


def _same_data(one: str, other: str) -> bool:
    return one == other or Path(one).resolve() == Path(other).resolve()
