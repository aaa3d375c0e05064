"""How good samples are: distances to real images, precision and recall, classifier accuracy, memorization.

The metrics are torch-fidelity's, of features that come from one place. Memorization is a nearest neighbor
search, and classifier accuracy a mean: neither library has them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from atconv.engine.options import NonNegative, Percent
from atconv.engine.predictor import Metrics
from atconv.engine.progress import progress
from atconv.engine.tables import Table
from atconv.tasks.generation.features import FeatureModel, RunFeatures
from atconv.tasks.generation.samples import ImageSet, SampleSet, batches

__all__ = ["GenerationMetrics", "Memorization", "compare", "memorization", "noise_images"]

_KID_SUBSET = 1000
_KID_SUBSETS = 100
_NOISE_IMAGES, _NOISE_REAL = 1000, 5000  # images, real ones, that show whether features see noise
_MAX_NOISE_PRECISION = 20.0  # percent


@dataclass(frozen=True)
class Memorization:
    """Distances to the nearest training image, in pixels: of samples, and of held-out real images."""

    median: float
    held_out_median: float
    below_first_percentile: float
    """share of samples that lie nearer than the 1st percentile of the held-out images, percent"""

    @property
    def ratio(self) -> float:
        """Median of the samples over that of held-out images: well below 1 where samples are copies."""
        return self.median / self.held_out_median

    def to_dict(self) -> dict[str, float]:
        return asdict(self) | {"ratio": self.ratio}


@dataclass(frozen=True, kw_only=True)
class GenerationMetrics(Metrics):
    """Metrics of one set of samples, `images` of them, compared with one set of real images."""

    records = ("memorization",)

    real_images: int
    features: str
    """what the distances are measured in: "Inception", or a run's features"""
    frechet_distance: NonNegative
    """FID where the features are Inception's"""
    kernel_distance: float
    """KID where the features are Inception's: mean of the cubic-kernel MMD over subsets"""
    precision: Percent
    recall: Percent
    inception_score: NonNegative | None
    """None where the features are not Inception's"""
    classifier_accuracy: Percent | None
    """share of samples that the run's classifier takes for their label, percent; None without labels, or
    where it was not trained on classes of these names"""
    feature_accuracy: Percent | None = None
    """share of held-out images that the run's classifier takes for their label, percent; None where it is not
    known"""
    noise_precision: Percent | None = None
    """precision of images of pure noise in the same features: near 0 where they see images at all"""
    no_verdict: str | None = None
    """why the features say nothing of samples, where they do not"""
    warnings: list[str] = field(default_factory=list)
    """what to know of the metrics before comparing them with others"""
    data: str = ""
    """where the real images are from"""
    memorization: Memorization | None = None
    sampling: dict[str, Any] | None = None
    """options of sampling, and its cost; None where the samples were there already"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; options and cost of sampling among them."""
        values = {k: v for k, v in vars(self).items() if k not in ("per_class", "memorization", "sampling")}
        values |= self.sampling or {}
        return values | ({} if self.memorization is None else {"memorization": self.memorization.to_dict()})

    def settings(self) -> dict[str, Any]:
        names = ("data", "split", "features", "images", "real_images")
        cost = ("evaluations_per_image", "seconds_per_image")
        sampling = {name: value for name, value in (self.sampling or {}).items() if name not in cost}
        return {name: getattr(self, name) for name in names} | sampling

    def tables(self, title: str) -> list[Table]:
        rows = [("features", self.features)]
        if self.feature_accuracy is not None:
            rows.append(("accuracy of the feature network", f"{self.feature_accuracy:.1f} %"))
        if self.noise_precision is not None:
            rows.append(("precision of pure noise", f"{self.noise_precision:.1f} %"))
        measured = self._measured()
        rows += measured if self.no_verdict is None else [(name, "no verdict") for name, _ in measured]
        if self.memorization is not None:
            ratio, below = self.memorization.ratio, self.memorization.below_first_percentile
            rows.append(("distance to the nearest training image", f"{ratio:.2f} × held-out"))
            rows.append(("nearer than 99 % of held-out images", f"{below:.1f} %"))
        rows.append(("samples, real images", f"{self.images}, {self.real_images}"))
        if self.sampling is not None:
            rows.append(("evaluations an image", str(self.sampling["evaluations_per_image"])))
            rows.append(("seconds an image", f"{self.sampling['seconds_per_image']:.4f}"))
        return [Table(title, ("metric", "value"), rows)]

    def _measured(self) -> list[tuple[str, str]]:
        """Rows of what the features say of the samples."""
        inception = self.inception_score is not None
        rows = [
            ("FID" if inception else "Fréchet distance", f"{self.frechet_distance:.3f}"),
            ("KID" if inception else "kernel distance", f"{self.kernel_distance:.5f}"),
            ("precision", f"{self.precision:.1f} %"),
            ("recall", f"{self.recall:.1f} %"),
        ]
        if inception:
            rows.append(("IS", f"{self.inception_score:.3f}"))
        if self.classifier_accuracy is not None:
            rows.append(("classifier accuracy", f"{self.classifier_accuracy:.1f} %"))
        return rows


def compare(
    samples: SampleSet, real: ImageSet, model: FeatureModel, batch_size: int = 64, split: str = ""
) -> GenerationMetrics:
    """All metrics of samples compared with real images.

    Raises:
        ValueError: fewer than five images of either.
    """
    count, real_count = len(samples), len(real)  # type: ignore[arg-type]
    if min(count, real_count) < 5:
        raise ValueError(
            f"distances between sets need at least 5 images of each: got {count} samples and "
            f"{real_count} real ones"
        )
    started = time.perf_counter()
    features, logits = extract(samples, model, batch_size, "features of samples")
    seconds = time.perf_counter() - started
    real_features, _ = extract(real, model, batch_size, "features of real images")
    noise = SampleSet(noise_images(min(count, _NOISE_IMAGES), samples.images.shape[1:]))
    noise_features, noise_logits = extract(noise, model, batch_size, "features of noise")
    some_real = real_features[:: -(-real_count // _NOISE_REAL)]
    noise_shares = prc_features_to_metric(noise_features, some_real, verbose=False, save_cpu_ram=True)
    noise_precision = 100 * noise_shares[KEY_METRIC_PRECISION]
    no_verdict = _no_verdict(model, noise_logits.shape[1], noise_precision)
    few = _too_few(count, real_count, features.shape[1])
    statistics = (fid_features_to_statistics(f.double()) for f in (features, real_features))
    frechet = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    kernel = kid_features_to_metric(
        features,
        real_features,
        kid_subsets=_KID_SUBSETS,
        kid_subset_size=min(_KID_SUBSET, count, real_count),
        verbose=False,
    )[KEY_METRIC_KID_MEAN]
    shares = prc_features_to_metric(features, real_features, verbose=False, save_cpu_ram=True)
    accuracy = None
    labels = classifier_labels(samples, model.classes) if isinstance(model, RunFeatures) else None
    if labels is not None:
        accuracy = 100 * float((logits.argmax(1) == torch.tensor(labels)).float().mean())
    score = None
    if model.inception:
        score = isc_features_to_metric(logits, splits=min(10, len(logits)))[KEY_METRIC_ISC_MEAN]
    return GenerationMetrics(
        split=split,
        images=count,
        images_per_second=count / seconds,
        real_images=real_count,
        features=model.title,
        frechet_distance=frechet,
        kernel_distance=kernel,
        precision=100 * shares[KEY_METRIC_PRECISION],
        recall=100 * shares[KEY_METRIC_RECALL],
        inception_score=score,
        classifier_accuracy=accuracy,
        feature_accuracy=model.accuracy,
        noise_precision=noise_precision,
        no_verdict=no_verdict,
        warnings=[text for text in (no_verdict, few) if text is not None],
    )


def noise_images(count: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    """What a generator that learned nothing makes: normal noise, clipped to the range of images. N H W C."""
    normal = np.random.default_rng(0).standard_normal((count, *shape))
    return ((normal.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def _no_verdict(model: FeatureModel, classes: int, noise_precision: float) -> str | None:
    """Why features say nothing of samples, if they do not."""
    advice = "no verdict: use --features inception, or a classifier that was trained longer"
    chance = 100 / classes
    if model.accuracy is not None and model.accuracy < (100 + chance) / 2:  # nearer to chance than to 100 %
        return (
            f"{model.title} are those of a classifier that is right for {model.accuracy:.1f} % only; {advice}"
        )
    if noise_precision > _MAX_NOISE_PRECISION:
        return f"{model.title} give pure noise a precision of {noise_precision:.0f} %; {advice}"
    return None


def _too_few(samples: int, real: int, features: int) -> str | None:
    """What few images do to a distance, where they are few for so many features."""
    if min(samples, real) >= max(1000, 2 * features):
        return None
    return (
        f"{samples} samples and {real} real images are few for {features} features: distances are too large, "
        "even between sets of one distribution; compare them only with distances of as many images"
    )


def classifier_labels(samples: SampleSet, classes: Sequence[str]) -> list[int] | None:
    """The labels of samples as a classifier numbers its classes; None where it does not know them all."""
    if samples.labels is None or samples.classes is None:
        return samples.labels
    names = [samples.classes[label] for label in samples.labels]
    return [list(classes).index(name) for name in names] if set(names) <= set(classes) else None


def extract(images: ImageSet, model: FeatureModel, batch_size: int, desc: str) -> tuple[Tensor, Tensor]:
    """Features N D and logits N K of all images."""
    total = -(-len(images) // batch_size)  # type: ignore[arg-type]
    bar = progress(batches(images, batch_size), desc, total)
    features, logits = zip(*(model(batch) for batch in bar), strict=True)
    return torch.cat(features), torch.cat(logits)


def memorization(
    samples: ImageSet, train: ImageSet, held_out: ImageSet, mirrored: bool = False
) -> Memorization:
    """Whether samples are copies of training images, by Euclidean distance in pixels (0 … 1).

    Args:
        samples, train, held_out: images of one size.
        mirrored: the training images were seen mirrored too, so their mirror images count as they do.

    Raises:
        ValueError: images of different sizes, or held-out images that are copies themselves.
    """
    sets = [_flat(images) for images in (samples, train, held_out)]
    if len({flat.shape[1] for flat in sets}) > 1:
        raise ValueError("samples and training images have different sizes")
    training = torch.cat([sets[1]] + ([_flat(train, mirror=True)] if mirrored else []))
    nearest, reference = (_nearest(flat, training) for flat in (sets[0], sets[2]))
    if reference.median() == 0:
        raise ValueError("most held-out images are copies of training images themselves")
    limit = torch.quantile(reference, 0.01)
    return Memorization(
        median=float(nearest.median()),
        held_out_median=float(reference.median()),
        below_first_percentile=100 * float((nearest < limit).float().mean()),
    )


def _flat(images: ImageSet, mirror: bool = False) -> Tensor:
    """N × (H·W·C), 0 … 1."""
    parts = (batch[:, :, ::-1] if mirror else batch for batch in batches(images, 1000))
    return torch.cat([torch.from_numpy(part.reshape(len(part), -1)).float() / 255 for part in parts])


def _nearest(images: Tensor, references: Tensor) -> Tensor:
    """Distance of each image to its nearest reference."""
    return torch.cat([torch.cdist(part, references).amin(1) for part in images.split(1000)])
