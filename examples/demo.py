"""`make demo`: train a small AttNet on real scans of digits, judge it, use it, and look inside.

Every step but the last picture is a command that is printed before it runs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from steps import atconv

from atconv import load
from atconv.analysis import collect_kernels
from atconv.analysis.plots import plot_kernels
from atconv.data.splits import Split, load_split
from atconv.engine.run import Run
from atconv.tasks.classification.config import read_config

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
SHOWN = 10


def held_out() -> Split:
    run = Run.open(FOLDER)
    side = load_split(read_config(run), run.path).test
    assert side is not None
    return side


def write_scans(side: Split, folder: Path) -> list[int]:
    """The first held-out scan of every digit, as PNG files; returns their positions."""
    folder.mkdir(exist_ok=True)
    positions = [side.labels.index(label) for label in range(SHOWN)]
    for label, position in enumerate(positions):
        side.read(position, "L").resize((64, 64), Image.Resampling.NEAREST).save(folder / f"a-{label}.png")
    return positions


def main() -> None:
    started = time.perf_counter()
    if FOLDER.exists():
        print(f"{FOLDER} is there already: continuing it (delete it to start over)")
        atconv("train", "--resume", str(FOLDER))
    else:
        atconv("train", "digits", "--config", "digits", "--out", str(FOLDER))
    atconv("evaluate", str(FOLDER), "digits")
    side = held_out()
    positions = write_scans(side, FOLDER / "scans")
    atconv("predict", str(FOLDER), str(FOLDER / "scans"), "--top", "3")

    model, transform, classes = load(FOLDER)
    scans = [side.read(position, "L") for position in positions]
    kernels = collect_kernels(model, torch.stack([transform(scan) for scan in scans]))
    # The layer whose kernels depend most on the image.
    layer = max(kernels, key=lambda name: float(kernels[name].std(0).mean() / kernels[name].abs().mean()))
    figure = plot_kernels(
        [np.asarray(scan) for scan in scans],
        [f"“{classes[i]}”" for i in range(SHOWN)],
        kernels[layer],
        layer,
    )
    figure.savefig(FOLDER / "kernels.png", dpi=110)
    print(
        f"""
Done in {time.perf_counter() - started:.0f} s. Everything lies in {FOLDER}:
  curves.png      loss and accuracy by epoch
  confusion.png   which digits were taken for which
  mistakes.png    the worst mistakes
  kernels.png     the 3×3 kernels the operator made for each of ten digits
  model.safetensors, config.json   the model, for timm.create_model("local-dir:{FOLDER}", pretrained=True)

See what the operator does, on one page:
  atconv analyze {FOLDER} {FOLDER / "scans"}

Try next, with your own pictures in folders named after their classes:
  atconv train my-pictures --image_size 128 --epochs 30
  atconv predict runs/my-pictures-attnet_xxs some.jpg
  atconv models"""
    )


if __name__ == "__main__":
    main()
