"""What `atconv generate sample` and `atconv generate evaluate` do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from atconv.engine.distributed import resolve_device
from atconv.engine.run import Run
from atconv.io import write_json
from atconv.tasks.common.report import evaluate_run
from atconv.tasks.generation.features import open_features
from atconv.tasks.generation.metrics import GenerationMetrics, compare
from atconv.tasks.generation.plots import plot_grid
from atconv.tasks.generation.predictor import GenerationPredictor, choose_split, open_images
from atconv.tasks.generation.samples import (
    parse_classes,
    random_subset,
    read_samples,
    write_npz,
    write_pngs,
)
from atconv.tasks.generation.sampling import SamplerConfig

__all__ = ["evaluate_samples", "sample_run"]

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda", "mps"]


def sample_run(
    run: str | Path,
    out: str | None = None,
    classes: str = "all",
    per_class: int = 10,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 64,
    device: Device = "auto",
    options: SamplerConfig | None = None,
) -> Path:
    """Sample images from a generation run and write them.

    Args:
        run: the run's folder.
        out: FILE.png for a labeled grid, FILE.npz for one array as ADM's evaluator reads it, any other name
            for a folder of PNG files; default: RUN/samples-SAMPLER.png.
        classes: "all", or numbers, ranges and names separated by commas, such as 0-4,7,cat.
        per_class: images of each class; all images, for a run without classes.
        seed: image i is made from (seed, i).
        height: of the images, if not the trained size.
        width: of the images, if not the trained size.
        batch_size: images at a time.
        device: where the model runs; auto takes an accelerator if there is one.
        options: sampler, steps, guidance.

    Returns:
        what was written.

    Raises:
        FileNotFoundError, ValueError: no such run, a class or size it does not have, or a name that is taken.
    """
    options = options or SamplerConfig()
    target = Path(out) if out is not None else Path(run) / f"samples-{options.sampler}.png"
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} holds files already: name a new folder with --out")
    if per_class < 1 or batch_size < 1:
        raise ValueError(f"per_class and batch_size must be at least 1, got {per_class} and {batch_size}")
    predictor = GenerationPredictor.open(Run.open(run)).to(device)
    names = predictor.classes
    if classes != "all" and not names:
        raise ValueError(f"{run} has no classes: leave --classes out; --per-class is the number of images")
    chosen = parse_classes(classes, names) if names else []
    labels = [label for label in chosen for _ in range(per_class)]
    target.parent.mkdir(parents=True, exist_ok=True)
    count = len(labels) or per_class
    sampled = predictor.sample(labels or None, count, options, seed, batch_size, height, width)
    images, evaluations, seconds = sampled
    if target.suffix == ".npz":
        write_npz(target, images, labels or None)
    elif target.suffix == ".png":
        title = (
            f"{Path(run).name}: {options.sampler}, {evaluations} evaluations, guidance {options.guidance:g}"
        )
        plot_grid(images, per_class, [names[label] for label in chosen] or [""], title, target)
    else:
        prefixes = [f"{label:04d}-" for label in labels] or [""] * count
        write_pngs(target, images, [f"{prefix}{i:06d}" for i, prefix in enumerate(prefixes)])
    logger.info("%d images, %d evaluations and %.4f s each: %s", count, evaluations, seconds / count, target)
    return target


def evaluate_samples(
    samples: str | Path,
    data: str,
    features: str = "inception",
    images: int = 10_000,
    real_images: int = 50_000,
    memorization: bool = False,
    split: Literal["train", "val", "test", "all"] = "train",
    data_root: str | None = None,
    inception_weights: str | None = None,
    options: SamplerConfig | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: Device = "auto",
) -> GenerationMetrics:
    """Compare samples with real images, print a table, and write the metrics as JSON: to RUN/evaluation/, or
    to SAMPLES.json next to an .npz file or a folder.

    Args:
        samples: a generation run, which makes new samples; or an .npz file or a folder of samples.
        data: DATA as in training, or an .npz file of real images.
        features: "inception", or the folder of a classification run whose features are used instead.
        images: how many images a run makes, evenly over its classes.
        real_images: compare with at most so many, chosen at random.
        memorization: look for copies of training images, too; for a run on images, and its own DATA.
        split: the split of DATA to compare with.
        data_root: folder of a named timm dataset, if not the run's.
        inception_weights: file of the Inception network; default: torch.hub's, or a download.
        options: how a run samples.
        seed: of the samples.
        batch_size: images at a time.
        device: where models run; auto takes an accelerator if there is one.

    Raises:
        FileNotFoundError, ValueError: no such samples, data or features; too few images.
    """
    if min(images, real_images, batch_size) < 1:
        raise ValueError(
            f"images, real_images and batch_size must be at least 1, got {(images, real_images, batch_size)}"
        )
    path, place = Path(samples), resolve_device(device)
    if (path / "model_index.json").is_file() or (path / "config.yaml").is_file():
        predictor = GenerationPredictor.open(Run.open(path)).to(place)
        metrics, _ = evaluate_run(
            predictor,
            data,
            split=split,
            features=features,
            images=images,
            real_images=real_images,
            check_memorization=memorization,
            data_root=data_root,
            inception_weights=inception_weights,
            options=options,
            seed=seed,
            batch_size=batch_size,
        )
        assert isinstance(metrics, GenerationMetrics)
        return metrics
    if memorization:
        raise ValueError("memorization is looked for in samples of a run, among the images it was trained on")
    model = open_features(features, inception_weights, place)
    sample_set = read_samples(path)
    name, real = choose_split(open_images(data, data_root, sample_set.images.shape[1:]), split, data)
    metrics = compare(sample_set, random_subset(real, real_images, seed), model, batch_size, name)
    target = path.with_suffix(".json")
    write_json(target, metrics.to_dict())
    logger.info("%s", metrics.tables(f"{samples} compared with {data}, {name} split")[0])
    logger.info("written to %s", target)
    return metrics
