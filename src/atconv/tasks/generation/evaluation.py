"""How good samples are: which real images they are compared with, and in what."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset

from atconv.data.config import DataConfig
from atconv.data.folders import choose_split
from atconv.data.formats import open_sources
from atconv.data.sources.base import ImageSource
from atconv.data.splits import Split, readable_split
from atconv.engine.options import PositiveInt, Seed, check_value, rule_of
from atconv.tasks.generation.data import SplitImages
from atconv.tasks.generation.features import open_features
from atconv.tasks.generation.latents import is_latents, latent_splits
from atconv.tasks.generation.metrics import GenerationMetrics, compare, memorization
from atconv.tasks.generation.samples import ImageSet, SampleSet, random_subset, read_samples

__all__ = ["Comparison", "EvaluationConfig"]

logger = logging.getLogger(__name__)

_COMPARED = 16  # images that show whether samples and real images are of one kind


@dataclass(kw_only=True)
class EvaluationConfig:
    """Options of an evaluation."""

    group: ClassVar[str] = "evaluation"

    split: Literal["train", "val", "test", "all"] = "train"
    """the split of DATA to compare with; published FID compares with the training images. Where DATA has no
    splits: all"""
    features: str = "inception"
    """inception, or the folder of a classification run whose features are used instead"""
    images: PositiveInt = 10_000
    """how many images a run makes, evenly over its classes"""
    real_images: PositiveInt = 50_000
    """compare with at most so many, chosen at random"""
    memorization: bool = False
    """look for copies of training images, too; for a run on images, and its own DATA"""
    data_root: str | None = None
    """folder of a named timm dataset, if not the run's"""
    inception_weights: str | None = None
    """file of the Inception network; default: torch.hub's, or a download"""
    seed: Seed = 0
    """of the samples"""
    batch_size: PositiveInt = 64
    """images at a time"""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            if rule_of(kind):  # names of splits are those of DATA
                check_value(name, getattr(self, name), kind)


class Comparison:
    """Real images, and the features that samples are compared with them in.

    Making one opens them: what is wrong with DATA or features is said before anything is sampled.

    Args:
        data: DATA as in training, or an .npz file of real images.
        shape: H W C of the samples.
        config: options.
        device: where the features are computed.
        of_run: the samples are made by a run.
        own: its splits, where DATA is what it was trained on.

    Raises:
        FileNotFoundError, ValueError: no such data or features.
    """

    def __init__(
        self,
        data: str,
        shape: Sequence[int],
        config: EvaluationConfig,
        device: torch.device,
        of_run: bool = False,
        own: Mapping[str, Split] | None = None,
    ) -> None:
        self.data, self.config, self.own = data, config, own is not None
        openers = _openers(data, shape, config.data_root, own)
        self.split = choose_split([*openers, "all"], "all" if len(openers) == 1 else config.split, data)
        if config.memorization and not (of_run and {"train", "val"} <= set(openers)):
            raise ValueError(
                "memorization is looked for in samples of a run, among the images it was trained on"
            )
        self.features = open_features(config.features, config.inception_weights, device)
        everything = self.split == "all" or config.memorization
        self.sets = {name: open_() for name, open_ in openers.items() if everything or name == self.split}

    def __call__(self, samples: SampleSet, mirrored: bool = False) -> GenerationMetrics:
        """Metrics of samples.

        Args:
            samples: of the shape that was given.
            mirrored: the training images were seen mirrored too.

        Raises:
            ValueError: too few images.
        """
        config, sets = self.config, self.sets
        real = ConcatDataset(list(sets.values())) if self.split == "all" else sets[self.split]
        chosen = random_subset(real, config.real_images, config.seed)
        metrics = compare(samples, chosen, self.features, config.batch_size, self.split)
        copied = None
        if config.memorization:
            held_out: ImageSet = ConcatDataset([sets[name] for name in sets if name != "train"])
            copied = memorization(samples, sets["train"], held_out, mirrored)
        notes = [*metrics.warnings, *_differences(samples, next(iter(sets.values())), sizes=not self.own)]
        for text in notes:
            logger.warning(text)
        return replace(
            metrics, data=self.data, warnings=notes, memorization=copied, sampling=samples.sampling
        )


def _openers(
    data: str, shape: Sequence[int], data_root: str | None, own: Mapping[str, Split] | None
) -> dict[str, Callable[[], ImageSet]]:
    """What opens each split of DATA, at the size of the samples."""
    if data.endswith(".npz"):
        samples = read_samples(Path(data))
        return {"all": lambda: samples}
    if shape[0] != shape[1]:
        raise ValueError(f"real images are cropped square, and the samples are {shape[0]} × {shape[1]}")
    sources: Mapping[str, Split | ImageSource]
    if own is not None:
        sources = own
    elif is_latents(data):
        sources = latent_splits(data).by_name
    else:
        sources = open_sources(DataConfig(data=data, data_root=data_root))
    return {name: partial(_open, source, shape) for name, source in sources.items()}


def _open(source: Split | ImageSource, shape: Sequence[int]) -> SplitImages:
    split = source if isinstance(source, Split) else readable_split(source)
    return SplitImages(split, shape[0], shape[2])


def _differences(samples: SampleSet, real: ImageSet, sizes: bool) -> list[str]:
    """How real images differ from samples in kind: in color, and in size where that matters."""
    positions = np.linspace(0, len(real) - 1, _COMPARED).astype(int).tolist()  # type: ignore[arg-type]
    if isinstance(real, SplitImages):
        originals = [np.asarray(real.split.read(i, "RGB")) for i in positions]
    else:
        originals = [real[i] for i in positions]
    size, notes = samples.images.shape[1:3], []
    others = sorted({image.shape[:2] for image in originals} - {size})
    if others and sizes:
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
