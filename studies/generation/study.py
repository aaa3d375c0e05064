"""Attention, hybrid or ATConv in a small SiT on Fashion-MNIST: same depth, width, steps, data and seeds.

    python studies/generation/study.py DATA_ROOT            # all runs; stop and start it as you like
    python studies/generation/study.py DATA_ROOT --pilot    # short runs, to see what all would take
    python studies/generation/study.py --report             # table and figure from results.csv

DATA_ROOT is what `atconv data fashion-mnist DATA_ROOT` wrote. Each run is an `atconv generate train` and an
`atconv generate evaluate`, printed before it starts; each adds one row to results.csv. A run that is there
is not run again, one that was interrupted goes on. Run it on an otherwise idle machine: it measures time.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUNS = Path("runs/study-generation")
FAMILIES = {"attention": "sit_s_2", "hybrid": "sit_hybrid_s_2", "ATConv": "sit_atconv_s_2"}
SEEDS = (0, 1, 2)
SAMPLES = 2000
SAMPLING = ["--sampler", "heun", "--steps", "12", "--guidance", "1.5"]
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided Student t for so many paired seeds


def atconv(*arguments: str) -> None:
    print("\n$ atconv " + shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "atconv.cli", *arguments], check=True)


def train(command: list[str], data_root: str, run: Path, *options: str) -> None:
    """A finished run stays as it is, an interrupted one goes on."""
    if (run / "checkpoints").is_dir():
        atconv(*command, "--resume", str(run))
        return
    if run.exists():
        raise SystemExit(f"{run} is there without a checkpoint: delete it and start again")
    atconv(*command, "torch/fashion_mnist", "--data_root", data_root, *options, "--out", str(run))


def judge(data_root: str) -> Path:
    """The classifier whose features the distance is measured in."""
    run = RUNS / "judge"
    train(["train"], data_root, run, "--config", "fashion_mnist", "--epochs", "5", "--tracker", "none")
    return run


def one_run(
    family: str, seed: int, data_root: str, features: Path, folder: Path, *options: str
) -> dict[str, Any]:
    """Train and judge; returns the row of results.csv."""
    run = folder / f"{family}-{seed}"
    recipe = ["--config", str(HERE / "recipe.yaml"), "--model", FAMILIES[family], "--seed", str(seed)]
    train(["generate", "train"], data_root, run, *recipe, *options)
    atconv(
        "generate", "evaluate", str(run), "torch/fashion_mnist", "--data_root", data_root, "--split", "test",
        "--features", str(features), "--images", str(SAMPLES), "--batch_size", "100", "--seed", str(seed),
        *SAMPLING,
    )  # fmt: skip
    trained = json.loads((run / "metrics.json").read_text())
    found = json.loads((run / "evaluation.json").read_text())
    names = (
        "frechet_distance", "kernel_distance", "precision", "recall", "recognised",
        "evaluations_per_image", "seconds_per_image",
    )  # fmt: skip
    return {
        "family": family,
        "seed": seed,
        "parameters": trained["parameters"],
        "gmacs": trained["multiply_adds"] / 1e9,
        "steps": trained["steps"],
        "training_seconds": round(trained["seconds"], 1),
        "val_loss": trained["val_loss"],
        **{name: found[name] for name in names},
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline=""))) if path.is_file() else []


def run_all(data_root: str, table: Path, folder: Path, seeds: tuple[int, ...], *options: str) -> None:
    """Every run that has no row yet, seed by seed, so that an early end leaves complete comparisons."""
    features = judge(data_root)
    for seed in seeds:
        for family in FAMILIES:
            rows = read_rows(table)
            if any(row["family"] == family and int(row["seed"]) == seed for row in rows):
                continue
            row = one_run(family, seed, data_root, features, folder, *options)
            new = not rows
            with table.open("a", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(row))
                if new:
                    writer.writeheader()
                writer.writerow(row)


def report(table: Path) -> None:
    """Print means with spread, and paired differences to attention with their 95 % interval."""
    rows = read_rows(table)
    columns = (
        "frechet_distance",
        "precision",
        "recall",
        "recognised",
        "training_seconds",
        "seconds_per_image",
    )
    print("| | parameters | GMACs | " + " | ".join(name.replace("_", " ") for name in columns) + " |")
    print("| --- |" + " --- |" * (len(columns) + 2))
    for family in FAMILIES:
        mine = [row for row in rows if row["family"] == family]
        if mine:
            cells = [_spread([float(row[name]) for row in mine]) for name in columns]
            size = f"{int(mine[0]['parameters']):,} | {float(mine[0]['gmacs']):.3f}"
            print(f"| {family} | {size} | " + " | ".join(cells) + " |")
    print()
    for family in ("hybrid", "ATConv"):
        for name in columns:
            print(f"{family} − attention, {name}: {_paired(rows, family, name)}")


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{deviation}"


def _paired(rows: list[dict[str, str]], family: str, name: str) -> str:
    by_seed = {(row["family"], row["seed"]): float(row[name]) for row in rows}
    seeds = sorted({seed for _, seed in by_seed})
    both = [s for s in seeds if (family, s) in by_seed and ("attention", s) in by_seed]
    differences = [by_seed[family, s] - by_seed["attention", s] for s in both]
    if len(differences) < 2:
        return f"{differences[0]:+.4g} (one seed)" if differences else "no pair yet"
    half = T_95[len(differences)] * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.4g} ± {half:.3g} (95 %, {len(differences)} pairs)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", nargs="?")
    parser.add_argument("--pilot", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.report:
        report(HERE / "results.csv")
    elif options.data_root is None:
        parser.error("DATA_ROOT is missing: make it with atconv data fashion-mnist DATA_ROOT")
    elif options.pilot:
        short = ("--epochs", "1")
        run_all(options.data_root, HERE / "pilot.csv", RUNS / "pilot", SEEDS[:2], *short)
        report(HERE / "pilot.csv")
    else:
        run_all(options.data_root, HERE / "results.csv", RUNS, SEEDS)
        report(HERE / "results.csv")


if __name__ == "__main__":
    main()
