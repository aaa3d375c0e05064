"""Attention, hybrid or ATConv in a small SiT on Fashion-MNIST: same depth, width, steps, data and seeds.

    python studies/generation/study.py time                # seconds a step and a sample; idle machine
    python studies/generation/study.py pilot DATA_ROOT     # short runs: what will it take, what can it show?
    python studies/generation/study.py run DATA_ROOT       # all runs; stop and start it as you like
    python studies/generation/study.py report              # table, figure, grids

DATA_ROOT is what `python -m studies.datasets.fashion_mnist DATA_ROOT` wrote.
Each run is an `atconv generate train` and an `atconv generate evaluate`, printed
before it starts, and adds one row to results.csv. A run that has a row is
not run again, one that was interrupted goes on. Time is measured apart, so runs may share their machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import timing
from families import FAMILIES, GUIDANCE, HERE, JUDGE, RUNS, SAMPLES, SEEDS, STEPS

import report
from atconv.io import read_rows

SAMPLING = ["--sampler", "heun", "--steps", str(STEPS), "--guidance", str(GUIDANCE)]
JUDGED = ("frechet_distance", "kernel_distance", "precision", "recall", "recognized", "evaluations_per_image")


def atconv(*arguments: str) -> None:
    print("\n$ atconv " + shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "atconv.cli", *arguments], check=True)


def train(data_root: str, run: Path, *options: str) -> None:
    """A finished run stays as it is, an interrupted one goes on."""
    command = ["generate", "train"]
    if (run / "config.yaml").is_file():
        atconv(*command, "--resume", str(run))
    else:
        atconv(*command, "torch/fashion_mnist", "--data_root", data_root, *options, "--out", str(run))


def one_run(family: str, seed: int, data_root: str, folder: Path, *options: str) -> dict[str, Any]:
    """Train and judge; returns the row of the table."""
    run = folder / f"{family}-{seed}"
    recipe = ["--config", str(HERE / "recipe.yaml"), "--model", FAMILIES[family], "--seed", str(seed)]
    train(data_root, run, *recipe, *options)
    atconv(
        "generate", "evaluate", str(run), "torch/fashion_mnist", "--data_root", data_root, "--split", "test",
        "--features", str(JUDGE), "--images", str(SAMPLES), "--batch_size", "100", "--seed", str(seed),
        *SAMPLING,
    )  # fmt: skip
    trained = json.loads((run / "metrics.json").read_text())
    found = json.loads((run / "evaluation.json").read_text())
    return {
        "family": family,
        "seed": seed,
        "parameters": trained["parameters"],
        "macs": trained["macs"],
        "steps": trained["steps"],
        "val_loss": trained["val_loss"],
        **{name: found[name] for name in JUDGED},
    }


def run_all(data_root: str, table: Path, folder: Path, families: list[str], *options: str) -> None:
    """Every run that has no row yet, seed by seed, so that an early end leaves complete comparisons."""
    for seed in SEEDS:
        for family in families:
            rows = read_rows(table)
            if any(row["family"] == family and int(row["seed"]) == seed for row in rows):
                continue
            row = one_run(family, seed, data_root, folder, *options)
            with table.open("a", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(row))
                if not rows:
                    writer.writeheader()
                writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("time", "pilot", "run", "report"))
    parser.add_argument("data_root", nargs="?")
    options = parser.parse_args()
    if options.stage in ("pilot", "run") and options.data_root is None:
        parser.error("DATA_ROOT is missing: make it with python -m studies.datasets.fashion_mnist DATA_ROOT")
    if options.stage == "time":
        timing.measure()
    elif options.stage == "pilot":
        run_all(options.data_root, HERE / "pilot.csv", RUNS / "pilot", ["ATConv"], "--epochs", "1")
        report.pilot()
    else:
        if options.stage == "run":
            run_all(options.data_root, HERE / "results.csv", RUNS, list(FAMILIES))
        report.results()


if __name__ == "__main__":
    main()
