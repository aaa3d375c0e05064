"""Why is ATConv behind attention in a small SiT? Deeper networks of equal size, and one change at a time.

    python -m studies.depth.study run SET        # every row that is missing, in any number of steps
    python -m studies.depth.study report SET     # table and plot of the rows that are there
    python -m studies.depth.study scale SET      # distances of training images and of noise, to scale.csv
    python -m studies.depth.study samples SET    # images of the runs of seed 0 that are there, to samples.png

SET is fashion_mnist or natural: sets.yaml says where the data lies, what differs from the recipe of the
generation study, and in whose features distances are measured. variants.yaml says what is compared.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from atconv.data.formats import open_sources
from atconv.data.splits import readable_split
from atconv.io import read_rows, write_rows
from atconv.plots import plt, save
from atconv.tasks.common.sweep import Job, Sweep, seed_by_seed
from atconv.tasks.generation.config import GenerationConfig
from atconv.tasks.generation.data import SplitImages
from atconv.tasks.generation.evaluation import Comparison, EvaluationConfig
from atconv.tasks.generation.metrics import noise_images
from atconv.tasks.generation.samples import SampleSet, batches, random_subset
from studies import harness
from studies.generation.report import COLORS, plot_grids
from studies.generation.setup import SAMPLES, read_recipe
from studies.generation.study import train_and_evaluate

HERE = Path(__file__).parent
REFERENCES = ("ATConv, 6 blocks", "attention, 6 blocks")
COLUMNS = ("frechet_distance", "classifier_accuracy", "val_loss")


def read_variants() -> tuple[dict[str, dict[str, Any]], int]:
    """Arguments of the model by variant, and the seeds of each."""
    content = yaml.safe_load((HERE / "variants.yaml").read_text())
    return content["depth"] | content["change"], content["seeds"]


def read_set(name: str) -> tuple[dict[str, Any], Path, Path | None]:
    """The recipe for a set, the run in whose features its distances are measured, and the table of a study
    that has families of 6 blocks with the same recipe.

    Raises:
        ValueError: there is no such set.
    """
    sets = yaml.safe_load((HERE / "sets.yaml").read_text())
    if name not in sets:
        raise ValueError(f"no set {name}; there are {', '.join(sets)}")
    content = sets[name]
    families = HERE / content["families"] if "families" in content else None
    return read_recipe() | content["recipe"], HERE / content["classifier"], families


def with_families(rows: list[dict[str, str]], families: Path) -> list[dict[str, str]]:
    """Rows, and those of another study's families of 6 blocks that are not among them."""
    made = {(row["variant"], row["seed"]) for row in rows}
    others = [row | {"variant": f"{row['family']}, 6 blocks"} for row in read_rows(families)]
    return rows + [row for row in others if (row["variant"], row["seed"]) not in made]


def plan(args: Namespace) -> tuple[Sweep, Sequence[Job]]:
    variants, seeds = read_variants()
    recipe, classifier, _ = read_set(args.data)
    recipe |= harness.machine_options(args)
    make = partial(make_row, recipe, classifier, variants, args.device)
    table, runs = args.out / args.data / "results.csv", args.runs / args.data
    sweep = Sweep(table, runs, make, args.device, recipe["precision"])
    return sweep, seed_by_seed(dict.fromkeys(variants, seeds))


def make_row(
    recipe: dict[str, Any],
    classifier: Path,
    variants: dict[str, dict[str, Any]],
    device: torch.device,
    job: Job,
    run: Path,
) -> dict[str, Any]:
    model_args = recipe["model_args"] | variants[job.variant]
    options = {"model": "sit_s_2", "model_args": model_args, "seed": job.seed}
    return train_and_evaluate(recipe | options, device, run, classifier)


def report(args: Namespace) -> None:
    """Print a table with differences paired by seed, and plot results.png."""
    out, (_, _, families) = args.out / args.data, read_set(args.data)
    rows = read_rows(out / "results.csv")
    if not rows:
        raise ValueError(f"{args.data} has no rows yet: start with the stage run")
    if families is not None and args.out.resolve() == HERE:  # rows of your own compare with your own alone
        rows = with_families(rows, families)
    names = [name for name in read_variants()[0] if any(row["variant"] == name for row in rows)]
    compared = [(metric, other) for metric in ("frechet_distance", "val_loss") for other in REFERENCES]
    references = [f"{metric} − {other}'s" for metric, other in compared]
    print("| " + " | ".join(["", "seeds", "parameters", "MACs (M)", *COLUMNS, *references]) + " |")
    print("| --- |" + " ---: |" * (3 + len(COLUMNS) + len(references)))
    for name in names:
        own = [row for row in rows if row["variant"] == name]
        differences = (
            "" if name == other else harness.paired_difference(rows, metric, name, other)
            for metric, other in compared
        )
        cells = [
            str(len(own)),
            f"{int(own[0]['parameters']):,}",
            f"{int(own[0]['macs']) / 1e6:.1f}",
            *(harness.mean_and_deviation([float(row[column]) for row in own]) for column in COLUMNS),
            *(difference or "" for difference in differences),
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    title = f"{harness.TITLES[args.data]}: distance of samples to the test images"
    plot_distances(rows, names, title, out / "results.png")


def samples(args: Namespace) -> None:
    """The same noise and labels through the runs of seed 0, side by side."""
    names = args.only or read_variants()[0]
    runs = {name: args.runs / args.data / Job(name, 0).folder for name in names}
    runs = {name: run for name, run in runs.items() if (run / "metrics.json").is_file()}
    if not runs:
        raise ValueError(f"no run of seed 0 has ended in {args.runs / args.data}: start with the stage run")
    plot_grids(runs, args.out / args.data / "samples.png")


def scale(args: Namespace) -> None:
    """What the distances of real images and of pure noise are, in the same features."""
    recipe, classifier, _ = read_set(args.data)
    config = GenerationConfig(model="sit_s_2", **recipe)
    splits = {name: readable_split(source) for name, source in open_sources(config).items()}
    shape = config.image_size, config.image_size, config.in_chans
    options = EvaluationConfig(split="test", features=str(classifier), batch_size=100)
    comparison = Comparison(config.data, shape, options, args.device, own=splits)
    train = SplitImages(splits["train"], shape[0], shape[2])
    chosen = random_subset(train, SAMPLES, seed=0)
    images = {
        "training images": next(batches(chosen, SAMPLES)),
        "noise": noise_images(SAMPLES, shape),
    }
    rows = []
    for name, pixels in images.items():
        metrics = comparison(SampleSet(pixels))
        columns = ("frechet_distance", "kernel_distance", "precision", "recall")
        rows.append({"images": name} | {column: f"{getattr(metrics, column):.4g}" for column in columns})
    path = args.out / args.data / "scale.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, rows)
    print(path.read_text())


def plot_distances(rows: Sequence[dict[str, str]], names: Sequence[str], title: str, path: Path) -> None:
    """Fréchet distance of each variant: a point for each run, a bar at the mean."""
    figure, axis = plt.subplots(figsize=(7.5, 1.2 + 0.35 * len(names)), layout="constrained")
    for place, name in enumerate(names):
        distances = [float(row["frechet_distance"]) for row in rows if row["variant"] == name]
        color = COLORS[name.split(",")[0]]
        axis.scatter(distances, [place] * len(distances), color=color, alpha=0.5, s=24)
        axis.scatter(statistics.mean(distances), place, marker="|", s=300, color=color)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(0, 1.05 * max(float(row["frechet_distance"]) for row in rows))
    axis.set(xlabel="Fréchet distance in the classifier's features (bar: mean of the seeds)", title=title)
    axis.grid(alpha=0.3, axis="x")
    save(figure, path)


if __name__ == "__main__":
    stages = {"scale": scale, "samples": samples}
    harness.main(__doc__, HERE, plan, report, stages, ("run", "report", *stages))
