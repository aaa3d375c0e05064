"""`make demo-segment`: train a small segmenter on scenes of real garments, evaluate it, use it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from demo_dense import CLASSIFIER, SCENES, prepare
from steps import atconv, train

RECIPE = Path(__file__).with_name("segment_scenes.yaml")
FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-segment")


def main() -> None:
    started = time.perf_counter()
    prepare()
    train(FOLDER, ["segment", "train"], str(SCENES), "--config", str(RECIPE), "--checkpoint", str(CLASSIFIER))
    shown = [str(SCENES / "images" / "test" / f"{i:06d}.png") for i in range(4)]
    atconv("segment", "predict", str(FOLDER), *shown)
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    print(
        f"""
Done in {time.perf_counter() - started:.0f} s: {metrics["miou"]:.1f} % mean IoU on scenes of
garments never seen. Everything lies in {FOLDER}:
  predictions.png    test scenes, their masks, and the predictions
  predictions/       four scenes with their predictions, and the masks
  curves.png         loss and mean IoU by epoch
  per_class.csv      IoU of each class

Try next, with your own masks:
  atconv segment train my-images --out runs/mine"""
    )


if __name__ == "__main__":
    main()
