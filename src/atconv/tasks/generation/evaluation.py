"""How good samples are, of a run or of a file: which real images they are compared with, and in what."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset

from atconv.data.config import DataConfig
from atconv.data.folders import choose_split
from atconv.data.formats import open_sources
from atconv.data.splits import load_splits, readable_split
from atconv.tasks.generation.data import SplitImages
from atconv.tasks.generation.features import open_features
from atconv.tasks.generation.latents import is_latents, latent_splits
from atconv.tasks.generation.metrics import GenerationMetrics, compare
from atconv.tasks.generation.metrics import memorization as measure_memorization
from atconv.tasks.generation.predictor import GenerationPredictor
from atconv.tasks.generation.samples import ImageSet, SampleSet, random_subset, read_samples
from atconv.tasks.generation.sampling import SamplerConfig, sample_images

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)

_COMPARED = 16  # images that show whether samples and real images are of one kind


def evaluate(
    samples: GenerationPredictor | SampleSet,
    data: str,
    device: torch.device,
    split: Literal["train", "val", "test", "all"] = "train",
    features: str = "inception",
    images: int = 10_000,
    real_images: int = 50_000,
    memorization: bool = False,
    data_root: str | None = None,
    inception_weights: str | None = None,
    options: SamplerConfig | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> GenerationMetrics:
    """Metrics of samples compared with real images. Writes no files.

    Args:
        samples: samples, or a generator to make new ones, evenly over its classes.
        data: DATA as in training, or an .npz file of real images.
        device: where the features are computed.
        split: the split of DATA to compare with: train, val, test or all. Where DATA has no splits: all.
        features: "inception", or the folder of a classification run whose features are used instead.
        images: how many images a run makes, evenly over its classes.
        real_images: compare with at most so many, chosen at random.
        memorization: look for copies of training images, too; for a run on images, and its own DATA.
        data_root: folder of a named timm dataset, if not the run's.
        inception_weights: file of the Inception network; default: torch.hub's, or a download.
        options: sampler, steps, guidance of new samples.
        seed: of the samples.
        batch_size: images at a time.

    Raises:
        FileNotFoundError, ValueError: no such data or features, or too few images.
    """
    if min(images, real_images, batch_size) < 1:
        raise ValueError(
            f"images, real_images and batch_size must be at least 1, got {(images, real_images, batch_size)}"
        )
    predictor = samples if isinstance(samples, GenerationPredictor) else None
    shape = samples.images.shape[1:] if isinstance(samples, SampleSet) else samples.pipeline.image_shape
    sets = _open_images(data, data_root, shape, predictor)
    name, real = _choose_split(sets, split, data)
    if memorization and (predictor is None or not {"train", "val"} <= set(sets)):
        raise ValueError("memorization is looked for in samples of a run, among the images it was trained on")
    model = open_features(features, inception_weights, device)
    sampling = None
    if isinstance(samples, GenerationPredictor):
        samples, sampling = _sample(samples, images, options or SamplerConfig(), seed, batch_size)
    metrics = compare(samples, random_subset(real, real_images, seed), model, batch_size, name)
    copied = None
    if memorization:
        held_out: ImageSet = ConcatDataset([sets[part] for part in sets if part != "train"])
        config: Any = predictor and predictor.config
        copied = measure_memorization(samples, sets["train"], held_out, mirrored=config.hflip > 0)
    metrics = replace(
        metrics,
        data=data,
        warnings=[*metrics.warnings, *_differences(samples, next(iter(sets.values())), predictor)],
        memorization=copied,
        sampling=sampling,
    )
    for text in metrics.warnings:
        logger.warning(text)
    return metrics


def _differences(samples: SampleSet, real: ImageSet, predictor: GenerationPredictor | None) -> list[str]:
    """How real images differ from samples in kind. A run's images are as it was trained on them."""
    positions = np.linspace(0, len(real) - 1, _COMPARED).astype(int).tolist()  # type: ignore[arg-type]
    if isinstance(real, SplitImages):
        originals = [np.asarray(real.split.read(i, "RGB")) for i in positions]
    else:
        originals = [real[i] for i in positions]
    size, notes = samples.images.shape[1:3], []
    others = sorted({image.shape[:2] for image in originals} - {size})
    if others and predictor is None:
        real_size = f"{others[0][0]} × {others[0][1]}" + (" and other sizes" if len(others) > 1 else "")
        notes.append(
            f"samples are {size[0]} × {size[1]} and real images {real_size}: resizing adds to the distance"
        )
    kinds = ["gray" if all(map(_is_gray, images)) else "in color" for images in (samples.images, originals)]
    if kinds[0] != kinds[1]:
        notes.append(f"samples are {kinds[0]} and real images {kinds[1]}: this adds to the distance")
    return notes


def _is_gray(image: NDArray[np.uint8]) -> bool:
    return bool((image == image[..., :1]).all())


def _sample(
    predictor: GenerationPredictor, images: int, options: SamplerConfig, seed: int, batch_size: int
) -> tuple[SampleSet, dict[str, Any]]:
    """New samples, and how they were made."""
    pipeline, count = predictor.pipeline, len(predictor.classes)
    labels = [i % count for i in range(images)] if count else None
    sampled = sample_images(pipeline, labels, images, options, seed, batch_size)
    sampling = asdict(options) | {
        "seed": seed,
        "evaluations_per_image": sampled.evaluations,
        "seconds_per_image": sampled.seconds / images,
    }
    return SampleSet(sampled.images, labels, pipeline.config.class_names), sampling


def _open_images(
    data: str, data_root: str | None, shape: Sequence[int], predictor: GenerationPredictor | None
) -> dict[str, ImageSet]:
    """The splits of DATA, at the size of the samples (H W C). A run's own splits where DATA is its own."""
    if data.endswith(".npz"):
        return {"all": read_samples(Path(data))}
    if shape[0] != shape[1]:
        raise ValueError(f"real images are cropped square, and the samples are {shape[0]} × {shape[1]}")
    config: Any = predictor and predictor.config
    if is_latents(data):
        splits = latent_splits(data).by_name
    elif predictor is not None and config is not None and Path(config.data).resolve() == Path(data).resolve():
        splits = load_splits(config, predictor.run.path).by_name
    else:
        sources = open_sources(DataConfig(data=data, data_root=data_root))
        splits = {name: readable_split(source) for name, source in sources.items()}
    return {name: SplitImages(split, shape[0], shape[2]) for name, split in splits.items()}


def _choose_split(sets: dict[str, ImageSet], split: str, data: str) -> tuple[str, ImageSet]:
    """A split by name. DATA that came without splits has only "all"."""
    name = choose_split([*sets, "all"], "all" if len(sets) == 1 else split, data)
    return name, ConcatDataset(list(sets.values())) if name == "all" else sets[name]
