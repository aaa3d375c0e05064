"""AttNet, ResNet and Swin in one small Faster R-CNN on garment scenes, from scratch: which finds more?

    python -m studies.detection.study run SCENES      # every row that is missing, in any number of steps
    python -m studies.detection.study report          # table and results.png of the rows that are there

SCENES is what `python -m studies.datasets.scenes ROOT SCENES` wrote.
"""

from __future__ import annotations

import json
import statistics
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

import atconv
from atconv.engine.devices import available_precision
from atconv.engine.tables import Table
from atconv.io import read_rows
from atconv.plots import plt, save
from atconv.replace.counting import macs
from atconv.tasks import train_or_resume
from atconv.tasks.common.sweep import Job, Sweep, seed_by_seed
from atconv.tasks.detection.config import DetectionConfig
from studies import harness

HERE = Path(__file__).parent
SEEDS = 3
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
SIZE = (96, 128)  # height and width of a scene
METRICS = {"box_map": "mAP, %", "box_map_50": "mAP 50, %", "box_map_75": "mAP 75, %"}


def plan(args: Namespace) -> tuple[Sweep, Sequence[Job]]:
    machine = harness.machine_options(args)
    make = partial(make_row, args.data, machine)
    precision = available_precision(config(args.data, machine, Job("AttNet", 0)).precision, args.device.type)
    sweep = Sweep(args.out / "results.csv", args.runs, make, args.device, precision, column="backbone")
    return sweep, seed_by_seed(dict.fromkeys(BACKBONES, SEEDS))


def config(scenes: str, machine: dict[str, Any], job: Job) -> DetectionConfig:
    model, arguments = BACKBONES[job.variant]
    recipe = yaml.safe_load((HERE / "recipe.yaml").read_text())
    run = {"data": scenes, "model": model, "model_args": arguments, "seed": job.seed}
    return DetectionConfig(**recipe | run | machine)


def make_row(scenes: str, machine: dict[str, Any], job: Job, run: Path) -> dict[str, Any]:
    train_or_resume(config(scenes, machine, job), run)
    metrics = json.loads((run / "metrics.json").read_text())["coco"]
    parameters = sum(parameter.numel() for parameter in atconv.load(run).model.parameters())
    return {name: f"{metrics[name]:.2f}" for name in METRICS} | {"parameters": parameters}


def report(args: Namespace) -> None:
    """Means over the seeds, on test scenes."""
    rows, cells = read_rows(args.out / "results.csv"), []
    for name, (model, arguments) in BACKBONES.items():
        own = [row for row in rows if row["backbone"] == name]
        means = [f"{statistics.mean(float(row[m]) for row in own):.1f}" if own else "–" for m in METRICS]
        backbone = timm.create_model(model, features_only=True, in_chans=1, **arguments)
        size = sum(parameter.numel() for parameter in backbone.parameters())
        count = macs(backbone, torch.zeros(1, 1, *SIZE))[""]
        full = f"{int(own[0]['parameters']):,}" if own else "–"
        cells.append((name, str(len(own)), *means, full, f"{size:,}", f"{count / 1e6:.0f}"))
    columns = ("backbone", "seeds", *METRICS.values(), "parameters", "of the backbone", "its MACs (M)")
    print(Table("test scenes", columns, cells))
    if rows:
        plot(rows, args.out / "results.png")


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """mAP of every run, by backbone."""
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for place, name in enumerate(BACKBONES):
        points = [float(row["box_map"]) for row in rows if row["backbone"] == name]
        axis.scatter([place] * len(points), points, s=45, alpha=0.8)
    axis.set_xticks(range(len(BACKBONES)), BACKBONES)
    axis.set(ylabel="box mAP@[.5:.95] on test scenes, %", xlim=(-0.5, len(BACKBONES) - 0.5))
    axis.set_title("Three backbones, detectors of equal size, from scratch (a point a run)", fontsize=11)
    axis.grid(alpha=0.3)
    save(figure, path)


if __name__ == "__main__":
    harness.main(__doc__, HERE, plan, report)
