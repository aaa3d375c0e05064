"""`make demo`: train a small AttNet on real scans of digits, evaluate it, use it, and look inside.

Every step but the last plot is a command that is printed before it runs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from steps import atconv, train

from atconv import load
from atconv.analysis import collect_kernels
from atconv.analysis.image_plots import plot_kernels
from atconv.data.splits import Split, load_splits
from atconv.plots import save

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
DIGITS = 10


def write_scans(split: Split, folder: Path) -> list[int]:
    """The first held-out scan of every digit, as PNG files; returns their positions."""
    folder.mkdir(exist_ok=True)
    positions = [split.labels.index(label) for label in range(DIGITS)]
    for label, position in enumerate(positions):
        split.read(position, "L").resize((64, 64), Image.Resampling.NEAREST).save(folder / f"a-{label}.png")
    return positions


def main() -> None:
    started = time.perf_counter()
    train(FOLDER, ["train"], "digits", "--config", "digits")
    atconv("evaluate", str(FOLDER), "digits")
    predictor = load(FOLDER)
    split = load_splits(predictor.config, FOLDER)["test"]
    positions = write_scans(split, FOLDER / "scans")
    atconv("predict", str(FOLDER), str(FOLDER / "scans"), "--top", "3")

    scans = [split.read(position, "L") for position in positions]
    inputs = torch.stack([predictor.transform(scan) for scan in scans])
    kernels = collect_kernels(predictor.model, inputs)
    # The layer whose kernels depend most on the image.
    layer = max(kernels, key=lambda name: float(kernels[name].std(0).mean() / kernels[name].abs().mean()))
    titles = [f"“{name}”" for name in predictor.classes]
    figure = plot_kernels([np.asarray(scan) for scan in scans], titles, kernels[layer], layer)
    save(figure, FOLDER / "kernels.png")
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

Try next, with your own images in folders named after their classes:
  atconv train my-images --image-size 128 --epochs 30
  atconv predict runs/my-images-attnet_xxs some.jpg
  atconv models"""
    )


if __name__ == "__main__":
    main()
