"""What `atconv generate sample` and `atconv generate evaluate` do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from atconv.engine.devices import resolve_device
from atconv.engine.options import Pixels, PositiveInt, Seed
from atconv.io import write_json
from atconv.tasks.common.report import evaluate_run, free_path
from atconv.tasks.generation.evaluation import Comparison, EvaluationConfig
from atconv.tasks.generation.metrics import GenerationMetrics
from atconv.tasks.generation.plots import grid_pixels, plot_grid
from atconv.tasks.generation.predictor import GenerationPredictor
from atconv.tasks.generation.samples import parse_classes, read_samples, write_npz, write_pngs
from atconv.tasks.generation.sampling import SamplerConfig
from atconv.tasks.registry import open_run

__all__ = ["evaluate_samples", "sample_run"]

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda", "mps"]


def sample_run(
    run: str | Path,
    out: str | None = None,
    classes: str = "all",
    per_class: PositiveInt = 10,
    seed: Seed = 0,
    height: Pixels | None = None,
    width: Pixels | None = None,
    batch_size: PositiveInt = 64,
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
    predictor = GenerationPredictor.open(open_run(run)).to(device)
    names = predictor.classes
    if classes != "all" and not names:
        raise ValueError(f"{run} has no classes: leave --classes out; --per-class is the number of images")
    chosen = parse_classes(classes, names) if names else None
    if target.suffix == ".png":
        size = predictor.pipeline.image_shape
        grid_pixels(len(chosen or [""]), per_class, height or size[0], width or size[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    samples = predictor.sample(chosen, per_class, options, seed, batch_size, height, width)
    cost = samples.sampling or {}
    evaluations, seconds = cost["evaluations_per_image"], cost["seconds_per_image"]
    if target.suffix == ".npz":
        write_npz(target, samples.images, samples.labels)
    elif target.suffix == ".png":
        title = (
            f"{Path(run).name}: {options.sampler}, {evaluations} evaluations, guidance {options.guidance:g}"
        )
        plot_grid(samples.images, per_class, [names[label] for label in chosen or []] or [""], title, target)
    else:
        prefixes = [f"{label:04d}-" for label in samples.labels or []] or [""] * len(samples)
        write_pngs(target, samples.images, [f"{prefix}{i:06d}" for i, prefix in enumerate(prefixes)])
    logger.info("%d images, %d evaluations and %.4f s each: %s", len(samples), evaluations, seconds, target)
    return target


def evaluate_samples(
    samples: str | Path,
    data: str | None = None,
    device: Device = "auto",
    options: SamplerConfig | None = None,
    **evaluation: Any,
) -> GenerationMetrics:
    """Compare samples with real images, print a table, and write the metrics as JSON: to RUN/evaluation/; of
    samples without a run, to SAMPLES.json next to an .npz file, or to runs/evaluation/SAMPLES.json for a
    folder, which may be somebody's data; under a number of their own where there are metrics of
    other settings.

    Args:
        samples: a generation run, which makes new samples; or an .npz file or a folder of samples.
        data: DATA as in training, or an .npz file of real images; default: the run's own.
        device: where models run; auto takes an accelerator if there is one.
        options: sampler, steps, guidance of new samples.
        **evaluation: the fields of `EvaluationConfig`.

    Raises:
        FileNotFoundError, ValueError: no such samples, data or features; too few images.
    """
    path = Path(samples)
    if (path / "model_index.json").is_file() or (path / "config.yaml").is_file():
        predictor = GenerationPredictor.open(open_run(path)).to(device)
        return evaluate_run(predictor, data, options=options, **evaluation)
    if data is None:
        raise ValueError(f"{samples} is no run, which would have data of its own: give DATA to compare with")
    images, config = read_samples(path), EvaluationConfig(**evaluation)
    metrics = Comparison(data, images.images.shape[1:], config, resolve_device(device))(images)
    target = path.with_suffix(".json")
    if path.is_dir():
        target = Path("runs") / "evaluation" / f"{path.resolve().name}.json"
    target = free_path(target, metrics)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, metrics.to_dict())
    logger.info("%s", metrics.tables(f"{samples} compared with {data}, {metrics.split} split")[0])
    logger.info("written to %s", target)
    return metrics
