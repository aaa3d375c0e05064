"""How good samples are: distances to real images, precision and recall, recognisability, copies, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from atconv.data.config import DataConfig
from atconv.data.splits import Split, load_split, open_sources
from atconv.diffusion.pipeline import SiTPipeline
from atconv.engine.progress import make_table, plain_console, track
from atconv.engine.run import Run, resolve_device
from atconv.io import write_json
from atconv.tasks.generation.config import SamplerConfig, read_config
from atconv.tasks.generation.features import FeatureModel, RunFeatures, open_features
from atconv.tasks.generation.latents import is_latents, latent_splits
from atconv.tasks.generation.samples import (
    ImageSet,
    PixelSet,
    SplitImages,
    open_pipeline,
    read_samples,
    sample_images,
)

__all__ = ["CopyCheck", "GenerationMetrics", "check_copies", "compare", "evaluate"]

_KID_SUBSET = 1000
_KID_SUBSETS = 100


@dataclass(frozen=True)
class GenerationMetrics:
    """Figures of one set of samples against one set of real images."""

    samples: int
    real_images: int
    features: str
    """what they are measured in: "Inception", or a run's features"""
    frechet_distance: float
    """FID where the features are Inception's"""
    kernel_distance: float
    """KID where the features are Inception's: mean of the cubic-kernel MMD over subsets"""
    precision: float
    recall: float
    inception_score: float | None
    """None where the features are not Inception's"""
    recognized: float | None
    """share of samples that the run's classifier takes for their label, percent; None without labels, or
    where it was not trained on classes of these names"""


@dataclass(frozen=True)
class CopyCheck:
    """Distances to the nearest training image, in pixels: of samples, and of real images held out."""

    median: float
    held_out_median: float
    below_first_percentile: float
    """share of samples that lie nearer than the 1st percentile of the held-out images, percent"""

    @property
    def ratio(self) -> float:
        """Median of the samples over that of held-out images: well below 1 where samples are copies."""
        return self.median / self.held_out_median


def evaluate(
    samples: str | Path,
    data: str,
    features: str = "inception",
    images: int = 10_000,
    real_images: int = 50_000,
    copies: bool = False,
    split: Literal["train", "val", "test", "all"] = "train",
    data_root: str | None = None,
    inception_weights: str | None = None,
    options: SamplerConfig | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Compare samples with real images, print a table, and write the figures as JSON.

    Args:
        samples: a generation run, which is asked for samples; or an .npz file or a folder of samples.
        data: DATA as in training, or an .npz file of real images.
        features: "inception", or the folder of a classification run whose features are used instead.
        images: how many samples to draw from a run, shared out evenly over its classes.
        real_images: compare with at most so many, chosen at random.
        copies: look too for copies of training images; for a run on pictures, and its own DATA.
        split: the side of DATA to compare with.
        data_root: folder of a named timm dataset, if not the run's.
        inception_weights: file of the Inception network; default: torch.hub's folder, or the network.
        options: how to draw from a run.
        seed: of the samples.
        batch_size: images at a time.
        device: where models run; auto takes an accelerator if there is one.

    Returns:
        the figures, as they stand in RUN/evaluation.json (or SAMPLES.json beside an .npz file or folder).

    Raises:
        FileNotFoundError, ValueError: no such samples, data or features; too few images.
    """
    if min(images, real_images, batch_size) < 1:
        raise ValueError(
            f"images, real_images and batch_size must be at least 1, got {(images, real_images, batch_size)}"
        )
    console = console or plain_console()
    where = resolve_device(device)
    path = Path(samples)
    run = path if (path / "model_index.json").is_file() or (path / "config.yaml").is_file() else None
    model = open_features(features, inception_weights, where)
    # All that can be wrong comes before the drawing, which takes long.
    source = read_samples(path) if run is None else open_pipeline(run, where)
    shape = source.images.shape[1:] if isinstance(source, PixelSet) else source.image_shape
    sides = _real_sides(data, data_root, run, shape)
    side, real = _chosen(sides, split, data)
    if copies and (run is None or not {"train", "val"} <= set(sides)):
        raise ValueError("copies are looked for in samples of a run, among the pictures it was trained on")
    figures: dict[str, Any] = {"data": data, "split": side}
    if isinstance(source, PixelSet):
        drawn = source
    else:
        drawn, cost = draw_samples(source, images, options or SamplerConfig(), seed, batch_size, console)
        figures |= cost
    metrics = compare(drawn, real.subset(real_images, seed), model, batch_size, console)
    figures |= asdict(metrics)
    if copies and run is not None:
        held_out = ImageSet.joined([sides[name] for name in sides if name != "train"])
        mirrored = read_config(Run.open(run)).hflip > 0
        found = check_copies(drawn, sides["train"], held_out, mirrored)
        figures["copies"] = asdict(found) | {"ratio": found.ratio}
    written = path / "evaluation.json" if path.is_dir() else path.with_suffix(".json")
    write_json(written, figures)
    console.print(metrics_table(metrics, figures, f"{samples} against {data}, {side}"))
    console.print(f"written to {written}", soft_wrap=True)
    return figures


def draw_samples(
    pipeline: SiTPipeline,
    count: int,
    options: SamplerConfig,
    seed: int,
    batch_size: int,
    console: Console,
) -> tuple[PixelSet, dict[str, Any]]:
    """Samples of a generator, evenly over its classes, and what they cost."""
    classes = pipeline.transformer.num_classes
    labels = [i % classes for i in range(count)] if classes else None
    images, evaluations, seconds = sample_images(pipeline, labels, count, options, seed, batch_size)
    cost = {
        **asdict(options),
        "seed": seed,
        "evaluations_per_image": evaluations,
        "seconds_per_image": seconds / count,
    }
    return PixelSet("samples", images, labels, pipeline.config.class_names), cost


def compare(
    samples: ImageSet, real: ImageSet, model: FeatureModel, batch_size: int, console: Console
) -> GenerationMetrics:
    """All figures of samples against real images.

    Raises:
        ValueError: fewer than two images, or fewer than a precision's neighborhood.
    """
    least = min(len(samples), len(real))
    if least < 5:
        raise ValueError(
            f"distances between sets need images: got {len(samples)} samples and {len(real)} real ones"
        )
    features, logits = extract(samples, model, batch_size, console)
    real_features, _ = extract(real, model, batch_size, console)
    statistics = (fid_features_to_statistics(f.double()) for f in (features, real_features))
    frechet = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    kernel = kid_features_to_metric(
        features,
        real_features,
        kid_subsets=_KID_SUBSETS,
        kid_subset_size=min(_KID_SUBSET, least),
        verbose=False,
    )[KEY_METRIC_KID_MEAN]
    shares = prc_features_to_metric(features, real_features, verbose=False, save_cpu_ram=True)
    recognized = None
    wanted = _labels_for(samples, model.classes) if isinstance(model, RunFeatures) else None
    if wanted is not None:
        recognized = 100 * float((logits.argmax(1) == torch.tensor(wanted)).float().mean())
    score = None
    if model.inception:
        score = isc_features_to_metric(logits, splits=min(10, len(logits)))[KEY_METRIC_ISC_MEAN]
    return GenerationMetrics(
        samples=len(samples),
        real_images=len(real),
        features=model.title,
        frechet_distance=frechet,
        kernel_distance=kernel,
        precision=100 * shares[KEY_METRIC_PRECISION],
        recall=100 * shares[KEY_METRIC_RECALL],
        inception_score=score,
        recognized=recognized,
    )


def _labels_for(samples: ImageSet, classes: Sequence[str]) -> list[int] | None:
    """The labels of samples as a classifier numbers its classes; None where it does not know them all."""
    if samples.labels is None or samples.classes is None:
        return samples.labels
    names = [samples.classes[label] for label in samples.labels]
    return [list(classes).index(name) for name in names] if set(names) <= set(classes) else None


def extract(
    images: ImageSet, model: FeatureModel, batch_size: int, console: Console
) -> tuple[Tensor, Tensor]:
    """Features N D and logits N K of all images."""
    total = -(-len(images) // batch_size)
    found = [
        model(batch)
        for batch in track(images.batches(batch_size), console, f"features of {images.name}", total)
    ]
    return torch.cat([features for features, _ in found]), torch.cat([logits for _, logits in found])


def check_copies(samples: ImageSet, train: ImageSet, held_out: ImageSet, mirrored: bool = False) -> CopyCheck:
    """Whether samples are copies of training images, by Euclidean distance in pixels (0 … 1).

    Args:
        samples, train, held_out: images of one size.
        mirrored: the training images were seen mirrored too, so their mirror images count as they do.

    Raises:
        ValueError: images of different sizes, or held-out images that are copies themselves.
    """
    sets = [_flat(images) for images in (samples, train, held_out)]
    if len({flat.shape[1] for flat in sets}) > 1:
        raise ValueError(f"{samples.name} and {train.name} hold images of different sizes")
    known = [sets[1]] + ([_flat(train, mirror=True)] if mirrored else [])
    nearest, reference = (_nearest(flat, torch.cat(known)) for flat in (sets[0], sets[2]))
    if reference.median() == 0:
        raise ValueError(f"most held-out images of {train.name} are copies of training images themselves")
    limit = torch.quantile(reference, 0.01)
    return CopyCheck(
        median=float(nearest.median()),
        held_out_median=float(reference.median()),
        below_first_percentile=100 * float((nearest < limit).float().mean()),
    )


def metrics_table(metrics: GenerationMetrics, cost: dict[str, Any], title: str) -> Any:
    frechet, kernel = (
        ("FID", "KID") if metrics.inception_score is not None else ("Fréchet distance", "kernel distance")
    )
    rows = [
        ("features", metrics.features),
        (frechet, f"{metrics.frechet_distance:.3f}"),
        (kernel, f"{metrics.kernel_distance:.5f}"),
        ("precision", f"{metrics.precision:.1f} %"),
        ("recall", f"{metrics.recall:.1f} %"),
    ]
    if metrics.inception_score is not None:
        rows.append(("IS", f"{metrics.inception_score:.3f}"))
    if metrics.recognized is not None:
        rows.append(("recognized as their label", f"{metrics.recognized:.1f} %"))
    if "copies" in cost:
        rows.append(("distance to the nearest training image", f"{cost['copies']['ratio']:.2f} × held-out's"))
        below = cost["copies"]["below_first_percentile"]
        rows.append(("nearer than 99 % of held-out images", f"{below:.1f} %"))
    rows.append(("samples, real images", f"{metrics.samples}, {metrics.real_images}"))
    if "seconds_per_image" in cost:
        rows.append(("evaluations an image", str(cost["evaluations_per_image"])))
        rows.append(("seconds an image", f"{cost['seconds_per_image']:.4f}"))
    return make_table(title, ("figure", "value"), rows)


def _real_sides(
    data: str, data_root: str | None, run: Path | None, shape: Sequence[int]
) -> dict[str, ImageSet]:
    """The sides of DATA, at the size of the samples (H W C). A run's own sides where DATA is its own."""
    if data.endswith(".npz"):
        return {"all": read_samples(Path(data))}
    if shape[0] != shape[1]:
        raise ValueError(f"real pictures are cropped square, and the samples are {shape[0]} × {shape[1]}")
    config = None if run is None else read_config(Run.open(run))
    if is_latents(data):
        sides = latent_splits(data).sides
    elif config is not None and run is not None and _same_data(config.data, data):
        sides = load_split(config, run).sides
    else:
        sources = open_sources(DataConfig(data=data, data_root=data_root))
        sides = {name: Split(source, list(range(len(source)))) for name, source in sources.items()}
    return {name: SplitImages(side, shape[0], shape[2], data) for name, side in sides.items()}


def _same_data(one: str, other: str) -> bool:
    return one == other or Path(one).resolve() == Path(other).resolve()


def _chosen(sides: dict[str, ImageSet], split: str, data: str) -> tuple[str, ImageSet]:
    """The side asked for, and what it is called: DATA that came without sides has only the whole."""
    if split == "all" or len(sides) == 1:
        return "all pictures", ImageSet.joined(list(sides.values()))
    if split not in sides:
        raise ValueError(f"{data} has no {split} side, only {', '.join(sides)}: choose one with --split")
    return f"{split} side", sides[split]


def _flat(images: ImageSet, mirror: bool = False) -> Tensor:
    """N × (H·W·C), 0 … 1."""
    batches = (batch[:, :, ::-1] if mirror else batch for batch in images.batches(1000))
    return torch.cat([torch.from_numpy(batch.reshape(len(batch), -1)).float() / 255 for batch in batches])


def _nearest(images: Tensor, references: Tensor, chunk: int = 1000) -> Tensor:
    """Distance of each image to its nearest reference."""
    return torch.cat([torch.cdist(part, references).amin(1) for part in images.split(chunk)])
