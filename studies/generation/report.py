"""From the rows to what they say: pilot, tables, plot, image grids."""

from __future__ import annotations

import statistics
from argparse import Namespace
from pathlib import Path

import atconv
from atconv.io import read_rows
from atconv.plots import plt, save
from atconv.tasks.generation.sampling import SamplerConfig
from studies.generation.setup import FAMILIES, GUIDANCE, SAMPLES, SEEDS, STEPS, read_recipe
from studies.harness import mean_and_deviation, paired_difference, smallest_difference

COLORS = {"attention": "#4477aa", "hybrid": "#aa7744", "ATConv": "#228833"}
METRICS = (
    "frechet_distance",
    "kernel_distance",
    "sample_precision",
    "sample_recall",
    "classifier_accuracy",
    "val_loss",
)


def print_pilot(out: Path) -> None:
    """What the full study takes, and the smallest difference that its seeds can show."""
    rows = read_rows(out / "pilot.csv")
    distances = [float(row["frechet_distance"]) for row in rows]
    print(f"\nFréchet distance after 1 epoch, {len(rows)} seeds: {mean_and_deviation(distances)}")
    total = 0.0
    for family, (step, sample) in timings(out).items():
        training = step * int(rows[0]["steps"]) * read_recipe()["epochs"]
        sampling = sample * SAMPLES
        total += (training + sampling) * SEEDS
        print(f"{family}: {training:.0f} s to train a run, {sampling:.0f} s for its {SAMPLES} samples")
    print(f"{len(FAMILIES) * SEEDS} runs: {total / 3600:.1f} hours")
    deviation = 2**0.5 * statistics.stdev(distances)  # of a pair, if its two are independent
    smallest = smallest_difference(deviation, SEEDS)
    print(f"smallest difference to be shown with {SEEDS} seeds: {smallest:.2g}")


def report(args: Namespace) -> None:
    """Print the tables; plot results.png and, where the runs are, grids.png."""
    rows = read_rows(args.out / "results.csv")
    if not rows:
        raise ValueError("results.csv has no rows yet: start with the stage run")
    costs = timings(args.out)
    print_table(rows, costs)
    print_differences(rows)
    plot_results(rows, costs, args.out / "results.png")
    runs = {family: args.runs / f"{family}-{rows[0]['seed']}" for family in FAMILIES}
    if all((run / "metrics.json").is_file() for run in runs.values()):
        plot_grids(runs, args.out / "grids.png")


def timings(out: Path) -> dict[str, tuple[float, float]]:
    """Seconds of a training step and of a sample in float32, by family."""
    rows = [row for row in read_rows(out / "timing.csv") if row["precision"] == "fp32"]
    if not rows:
        raise ValueError("timing.csv is not there yet: start with the stage time")
    return {row["family"]: (float(row["step_seconds"]), float(row["sample_seconds"])) for row in rows}


def print_table(rows: list[dict[str, str]], costs: dict[str, tuple[float, float]]) -> None:
    print("| | seeds | parameters | MACs (M) | training s | ms a sample | " + " | ".join(METRICS) + " |")
    print("| --- |" + " --- |" * (len(METRICS) + 5))
    for family, (step, sample) in costs.items():
        own = [row for row in rows if row["family"] == family]
        cells = [
            str(len(own)),
            f"{int(own[0]['parameters']):,}",
            f"{int(own[0]['macs']) / 1e6:.1f}",
            f"{step * int(own[0]['steps']):.0f}",
            f"{1000 * sample:.1f}",
            *(mean_and_deviation([float(row[name]) for row in own]) for name in METRICS),
        ]
        print(f"| {family} | " + " | ".join(cells) + " |")


def print_differences(rows: list[dict[str, str]]) -> None:
    """Paired by seed, with their 95 % interval."""
    print()
    for family in ("hybrid", "ATConv"):
        for name in ("frechet_distance", "classifier_accuracy", "val_loss"):
            difference = paired_difference(rows, name, family, "attention", "family")
            if difference is not None:
                print(f"{family} − attention, {name}: {difference}")


def plot_results(rows: list[dict[str, str]], costs: dict[str, tuple[float, float]], path: Path) -> None:
    """Distance against training time and against time a sample: a point a run, a bar at the mean."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for family, (step, sample) in costs.items():
        own = [row for row in rows if row["family"] == family]
        distances = [float(row["frechet_distance"]) for row in own]
        for axis, cost in zip(axes, (step * int(own[0]["steps"]), 1000 * sample), strict=True):
            color = COLORS[family]
            axis.scatter([cost] * len(own), distances, color=color, alpha=0.5, s=24)
            axis.scatter(cost, statistics.mean(distances), marker="_", s=500, color=color, label=family)
    axes[0].set(xlabel="training, seconds", ylabel="Fréchet distance in the classifier's features")
    axes[1].set(xlabel=f"one sample of {2 * STEPS} guided evaluations, milliseconds")
    for axis in axes:
        axis.set_xlim(0, 1.08 * axis.get_xlim()[1])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(markerscale=0.4, title="bar: mean of the seeds", loc="lower left")
    figure.suptitle("Fashion-MNIST, same steps: lower and further left is better", fontsize=11)
    save(figure, path)


def plot_grids(runs: dict[str, Path], path: Path, columns: int = 6) -> None:
    """The same noise and labels through runs, by the name that is written above each. A row is a class."""
    shape = (4 * len(runs), 6.6)
    figure, axes = plt.subplots(1, len(runs), figsize=shape, squeeze=False, layout="constrained")
    options = SamplerConfig(sampler="heun", steps=STEPS, guidance=GUIDANCE)
    for axis, (name, run) in zip(axes[0], runs.items(), strict=True):
        predictor = atconv.load(run)
        images = predictor.sample(per_class=columns, options=options).images
        _, size, _, channels = images.shape
        tiled = images.reshape(-1, columns, size, size, channels).transpose(0, 2, 1, 3, 4)
        axis.imshow(tiled.reshape(-1, columns * size, channels), cmap="gray", vmin=0, vmax=255)
        axis.set_title(name)
        axis.set_xticks([])
        classes = predictor.classes if axis is axes[0, 0] else []
        axis.set_yticks([i * size + size / 2 for i in range(len(classes))], labels=classes)
        axis.tick_params(length=0)
    save(figure, path, dpi=90)
