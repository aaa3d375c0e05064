"""`make demo-detect`: train a small detector on scenes of real garments, evaluate it, use it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from demo_dense import CLASSIFIER, SCENES, prepare
from steps import atconv, train

RECIPE = Path(__file__).with_name("detect_scenes.yaml")
FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-detect")


def main() -> None:
    started = time.perf_counter()
    prepare()
    train(FOLDER, ["detect", "train"], str(SCENES), "--config", str(RECIPE), "--checkpoint", str(CLASSIFIER))
    shown = [str(SCENES / "images" / "test" / f"{i:06d}.png") for i in range(4)]
    atconv("detect", "predict", str(FOLDER), *shown)
    metrics = json.loads((FOLDER / "metrics.json").read_text())["coco"]
    print(
        f"""
Done in {time.perf_counter() - started:.0f} s: {metrics["box_map"]:.1f} % mAP@[.5:.95] on scenes of
garments never seen. Everything lies in {FOLDER}:
  predictions.png    test scenes, their boxes, and the detections
  predictions/       four scenes with their detections
  curves.png         loss and precision by epoch
  per_class.csv      precision of each class

Try next, with your own boxes in COCO's format:
  atconv detect train my-images --out runs/mine
  atconv detect train {SCENES} --config {RECIPE} --architecture mask_rcnn --checkpoint {CLASSIFIER}"""
    )


if __name__ == "__main__":
    main()
