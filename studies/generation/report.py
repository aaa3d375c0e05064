"""From the rows to what they say: pilot, table, figure, sample grids."""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from families import FAMILIES, GUIDANCE, HERE, RUNS, SAMPLES, SEEDS, STEPS, read_recipe
from rich.console import Console
from scipy import stats

from atconv.diffusion.samplers import SamplerConfig
from atconv.io import read_rows
from atconv.plots import plt, save
from atconv.tasks.classification.study.costs import smallest_difference
from atconv.tasks.generation.samples import draw_pixels, open_pipeline

COLOURS = {"attention": "#4477aa", "hybrid": "#aa7744", "ATConv": "#228833"}


def pilot() -> None:
    """What the full study takes, and the smallest difference that its seeds can show."""
    rows, times = read_rows(HERE / "pilot.csv"), timings("fp32")
    distances = [float(row["frechet_distance"]) for row in rows]
    deviation = statistics.stdev(distances)
    print(f"\nFréchet distance after 1 epoch, {len(rows)} seeds: {spread(distances)}")
    total = 0.0
    for family, (step, sample) in times.items():
        training = step * int(rows[0]["steps"]) * read_recipe()["epochs"]
        judging = sample * SAMPLES
        total += (training + judging) * len(SEEDS)
        print(f"{family}: {training:.0f} s to train a run, {judging:.0f} s to draw its {SAMPLES} samples")
    print(f"{len(FAMILIES) * len(SEEDS)} runs: {total / 3600:.1f} hours")
    least = smallest_difference(2**0.5 * deviation, len(SEEDS))  # of a pair, if its two are independent
    print(f"smallest difference to be shown with {len(SEEDS)} seeds: {least:.2g}")


def results() -> None:
    """Print the tables; draw results.png and, where the runs are, grids.png."""
    rows = read_rows(HERE / "results.csv")
    if not rows:
        raise SystemExit("results.csv has no rows yet: start with study.py run DATA_ROOT")
    print_table(rows)
    print_differences(rows)
    draw_results(rows)
    seed = int(rows[0]["seed"])
    runs = {family: RUNS / f"{family}-{seed}" for family in FAMILIES}
    if all((run / "metrics.json").is_file() for run in runs.values()):
        draw_grids(runs)


def print_table(rows: list[dict[str, str]]) -> None:
    judged = ("frechet_distance", "kernel_distance", "precision", "recall", "recognized", "val_loss")
    print("| | seeds | parameters | MMACs | training s | ms a sample | " + " | ".join(judged) + " |")
    print("| --- |" + " --- |" * (len(judged) + 5))
    for family, (step, sample) in timings("fp32").items():
        mine = [row for row in rows if row["family"] == family]
        cells = [spread([float(row[name]) for row in mine]) for name in judged]
        costs = [
            str(len(mine)),
            f"{int(mine[0]['parameters']):,}",
            f"{int(mine[0]['macs']) / 1e6:.1f}",
            f"{step * int(mine[0]['steps']):.0f}",
            f"{1000 * sample:.1f}",
        ]
        print(f"| {family} | " + " | ".join(costs + cells) + " |")


def print_differences(rows: list[dict[str, str]]) -> None:
    """Paired by seed, with their 95 % interval."""
    print()
    for family in ("hybrid", "ATConv"):
        for name in ("frechet_distance", "recognized", "val_loss"):
            found = {
                (row["family"], row["seed"]): float(row[name])
                for row in rows
                if row["family"] in (family, "attention")
            }
            seeds = [seed for f, seed in found if f == family and ("attention", seed) in found]
            pairs = [found[family, seed] - found["attention", seed] for seed in seeds]
            if len(pairs) > 1:
                half = stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5
                print(
                    f"{family} − attention, {name}: {statistics.mean(pairs):+.4g} ± {half:.3g} "
                    f"(95 %, {len(pairs)} pairs)"
                )


def timings(precision: str) -> dict[str, tuple[float, float]]:
    """Seconds of a training step and of a sample, by family."""
    rows = [row for row in read_rows(HERE / "timing.csv") if row["precision"] == precision]
    if not rows:
        raise SystemExit("timing.csv is not there yet: start with study.py time")
    return {row["family"]: (float(row["step_seconds"]), float(row["sample_seconds"])) for row in rows}


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{deviation}"


def draw_results(rows: list[dict[str, str]]) -> None:
    """Distance against training time and against time a sample: a point a run, a bar at the mean."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for family, (step, sample) in timings("fp32").items():
        mine = [row for row in rows if row["family"] == family]
        distances = [float(row["frechet_distance"]) for row in mine]
        for axis, cost in zip(axes, (step * int(mine[0]["steps"]), 1000 * sample), strict=True):
            color = COLOURS[family]
            axis.scatter([cost] * len(mine), distances, color=color, alpha=0.5, s=24)
            axis.scatter(cost, statistics.mean(distances), marker="_", s=500, color=color, label=family)
    axes[0].set(xlabel="training, seconds", ylabel="Fréchet distance in the judge's features")
    axes[1].set(xlabel=f"one sample of {2 * STEPS} guided evaluations, milliseconds")
    for axis in axes:
        axis.set_xlim(0, 1.08 * axis.get_xlim()[1])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(markerscale=0.4, title="bar: mean of the seeds", loc="lower left")
    figure.suptitle("Fashion-MNIST, same steps: lower and further left is better", fontsize=11)
    save(figure, HERE / "results.png")


def draw_grids(runs: dict[str, Path], columns: int = 6) -> None:
    """The same noise and labels through each family, side by side."""
    figure, axes = plt.subplots(1, len(runs), figsize=(4 * len(runs), 6.6), layout="constrained")
    options = SamplerConfig(sampler="heun", steps=STEPS, guidance=GUIDANCE)
    for axis, (family, run) in zip(axes, runs.items(), strict=True):
        pipeline = open_pipeline(run, torch.device("cpu"))
        labels = [label for label in range(10) for _ in range(columns)]
        images = draw_pixels(pipeline, labels, options, 0, 60, Console(quiet=True))[0]
        side = images.shape[1]
        tiled = images[..., 0].reshape(10, columns, side, side).transpose(0, 2, 1, 3)
        axis.imshow(tiled.reshape(10 * side, columns * side), cmap="gray", vmin=0, vmax=255)
        axis.set_title(family)
        axis.set_xticks([])
        named = pipeline.class_names if axis is axes[0] else []
        axis.set_yticks([i * side + side / 2 for i in range(len(named))], labels=named)
        axis.tick_params(length=0)
    save(figure, HERE / "grids.png", dpi=90)
