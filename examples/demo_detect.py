"""`make demo-detect`: train a small detector on scenes of real garments, judge it, use it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from demo_dense import CLASSIFIER, SCENES, prepare
from steps import atconv, train

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-detect")


def main() -> None:
    started = time.perf_counter()
    prepare()
    train(FOLDER, ["detect", "train"], str(SCENES), "--config", "scenes", "--weights", str(CLASSIFIER))
    shown = [str(SCENES / "images" / "test" / f"{i:06d}.png") for i in range(4)]
    atconv("detect", "predict", str(FOLDER), *shown)
    found = json.loads((FOLDER / "metrics.json").read_text())["figures"]
    print(
        f"""
Done in {time.perf_counter() - started:.0f} s: {found["box_map"]:.1f} % mAP@[.5:.95] on scenes of
garments never seen. Everything lies in {FOLDER}:
  predictions.png    what test scenes show, and what was found
  predictions/       four scenes, drawn one by one
  curves.png         loss and precision by epoch
  per_class.csv      precision of each class

Try next, with your own boxes in COCO's format:
  atconv detect train my-pictures --out runs/mine
  atconv detect train {SCENES} --config scenes --architecture mask_rcnn --weights {CLASSIFIER}"""
    )


if __name__ == "__main__":
    main()
