"""How good samples are: distances to real images, precision and recall, classifier accuracy, memorization.

The metrics are torch-fidelity's, of features that come from one place. Memorization is a nearest neighbor
search, and classifier accuracy a mean: neither library has them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
from tqdm import tqdm

from atconv.engine.predictor import Metrics
from atconv.engine.tables import Table
from atconv.tasks.generation.features import FeatureModel, RunFeatures
from atconv.tasks.generation.samples import ImageSet, SampleSet, batches

__all__ = ["GenerationMetrics", "Memorization", "compare", "memorization"]

_KID_SUBSET = 1000
_KID_SUBSETS = 100


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

    real_images: int
    features: str
    """what the distances are measured in: "Inception", or a run's features"""
    frechet_distance: float
    """FID where the features are Inception's"""
    kernel_distance: float
    """KID where the features are Inception's: mean of the cubic-kernel MMD over subsets"""
    precision: float
    recall: float
    inception_score: float | None
    """None where the features are not Inception's"""
    classifier_accuracy: float | None
    """share of samples that the run's classifier takes for their label, percent; None without labels, or
    where it was not trained on classes of these names"""
    memorization: Memorization | None = None
    sampling: dict[str, Any] | None = None
    """options of sampling, and its cost; None where the samples were there already"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; options and cost of sampling among them."""
        values = {k: v for k, v in vars(self).items() if k not in ("per_class", "memorization", "sampling")}
        values |= self.sampling or {}
        return values | ({} if self.memorization is None else {"memorization": self.memorization.to_dict()})

    def tables(self, title: str) -> list[Table]:
        inception = self.inception_score is not None
        rows = [
            ("features", self.features),
            ("FID" if inception else "Fréchet distance", f"{self.frechet_distance:.3f}"),
            ("KID" if inception else "kernel distance", f"{self.kernel_distance:.5f}"),
            ("precision", f"{self.precision:.1f} %"),
            ("recall", f"{self.recall:.1f} %"),
        ]
        if inception:
            rows.append(("IS", f"{self.inception_score:.3f}"))
        if self.classifier_accuracy is not None:
            rows.append(("classifier accuracy", f"{self.classifier_accuracy:.1f} %"))
        if self.memorization is not None:
            ratio, below = self.memorization.ratio, self.memorization.below_first_percentile
            rows.append(("distance to the nearest training image", f"{ratio:.2f} × held-out"))
            rows.append(("nearer than 99 % of held-out images", f"{below:.1f} %"))
        rows.append(("samples, real images", f"{self.images}, {self.real_images}"))
        if self.sampling is not None:
            rows.append(("evaluations an image", str(self.sampling["evaluations_per_image"])))
            rows.append(("seconds an image", f"{self.sampling['seconds_per_image']:.4f}"))
        return [Table(title, ("metric", "value"), rows)]


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
            f"distances between sets need images: got {count} samples and {real_count} real ones"
        )
    started = time.perf_counter()
    features, logits = extract(samples, model, batch_size, "features of samples")
    seconds = time.perf_counter() - started
    real_features, _ = extract(real, model, batch_size, "features of real images")
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
    bar = tqdm(batches(images, batch_size), desc, total, disable=None, leave=False)
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


def _nearest(images: Tensor, references: Tensor, chunk: int = 1000) -> Tensor:
    """Distance of each image to its nearest reference."""
    return torch.cat([torch.cdist(part, references).amin(1) for part in images.split(chunk)])
