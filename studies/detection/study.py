"""AttNet, ResNet and Swin in one small Faster R-CNN on garment scenes, from scratch: who finds more?

    python studies/detection/study.py run SCENES       # all runs; stop and start it as you like;
                                                        # --seeds 0 and --seeds 1 2 may run side by side
    python studies/detection/study.py report           # table and results.png of what is there

SCENES is what `python -m studies.datasets.scenes ROOT SCENES` wrote. Each run is an `atconv detect train`,
printed before it starts, and adds one row to results.csv. A run that has a row is not run again, one that was
interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from atconv.engine.progress import make_table, plain_console
from atconv.tasks.dense import load
from filelock import FileLock

from atconv.io import read_rows, write_rows
from atconv.plots import plt, save
from atconv.replace.counting import macs

HERE = Path(__file__).parent
RUNS = Path("runs/study-detection")
TABLE = HERE / "results.csv"
SEEDS = (0, 1, 2)
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "AttNet": (
        "attnet_xxs",
        {"depths": [1, 1, 3, 1], "dims": [32, 64, 128, 192], "mlp_ratios": [4, 4, 4, 4]},
    ),
    "ResNet": ("resnet18", {"channels": [32, 64, 128, 224], "layers": [1, 1, 2, 1]}),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 29, "depths": [1, 1, 3, 1], "num_heads": [1, 2, 4, 8], "window_size": 4,
         "img_size": [96, 128], "strict_img_size": False},
    ),
}  # fmt: skip
PICTURE = (96, 128)  # height and width of a scene
FIGURES = ("box_map", "box_map_50", "box_map_75")


def train(name: str, seed: int, scenes: str, run: Path) -> None:
    """A finished run stays as it is, an interrupted one goes on."""
    model, arguments = BACKBONES[name]
    options = ["--config", str(HERE / "recipe.yaml"), "--model", model, "--model_args", json.dumps(arguments)]
    start = [scenes, *options, "--seed", str(seed), "--out", str(run)]
    command = ["detect", "train", *(["--resume", str(run)] if (run / "config.yaml").is_file() else start)]
    print("\n$ atconv " + shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "atconv.cli", *command], check=True)


def run_all(scenes: str, seeds: Sequence[int]) -> None:
    """Every run that has no row yet, seed by seed, so that an early end leaves complete comparisons."""
    RUNS.mkdir(parents=True, exist_ok=True)
    for seed, name in product(seeds, BACKBONES):
        if any((row["backbone"], row["seed"]) == (name, str(seed)) for row in read_rows(TABLE)):
            continue
        run = RUNS / f"{name}-{seed}"
        train(name, seed, scenes, run)
        found = json.loads((run / "metrics.json").read_text())
        row = {
            "backbone": name,
            "seed": seed,
            **{figure: f"{found['figures'][figure]:.2f}" for figure in FIGURES},
            "parameters": sum(p.numel() for p in load(run)[0].parameters()),
        }
        with FileLock(RUNS / "results.lock"):
            write_rows(TABLE, [*read_rows(TABLE), row])


def report() -> None:
    """Means over the seeds, on test scenes."""
    rows, cells = read_rows(TABLE), []
    for name, (model, arguments) in BACKBONES.items():
        own = [row for row in rows if row["backbone"] == name]
        means = (
            [f"{statistics.mean(float(row[f]) for row in own):.1f}" for f in FIGURES] if own else ["–"] * 3
        )
        body = timm.create_model(model, features_only=True, in_chans=1, **arguments)
        size = sum(parameter.numel() for parameter in body.parameters())
        count = macs(body, torch.zeros(1, 1, *PICTURE))[""]
        whole = f"{int(own[0]['parameters']):,}" if own else "–"
        cells.append((name, str(len(own)), *means, whole, f"{size:,}", f"{count / 1e6:.0f}"))
    heads = (
        "backbone",
        "seeds",
        "mAP, %",
        "mAP 50, %",
        "mAP 75, %",
        "parameters",
        "of them backbone",
        "its MMACs",
    )
    plain_console().print(make_table("test scenes", heads, cells))
    if rows:
        draw(rows)


def draw(rows: list[dict[str, str]]) -> None:
    """mAP of every run, by backbone."""
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for place, name in enumerate(BACKBONES):
        points = [float(row["box_map"]) for row in rows if row["backbone"] == name]
        axis.scatter([place] * len(points), points, s=45, alpha=0.8)
    axis.set_xticks(range(len(BACKBONES)), BACKBONES)
    axis.set(ylabel="box mAP@[.5:.95] on test scenes, %", xlim=(-0.5, len(BACKBONES) - 0.5))
    axis.set_title("Three backbones, detectors of equal size, from scratch (a point a run)", fontsize=11)
    axis.grid(alpha=0.3)
    save(figure, HERE / "results.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    running = stages.add_parser("run")
    running.add_argument("scenes", help="folder of garment scenes")
    running.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    stages.add_parser("report")
    given = parser.parse_args()
    if given.stage == "run":
        run_all(given.scenes, given.seeds)
    report()


if __name__ == "__main__":
    main()
