"""`make demo-generate`: train a small ATConv SiT on real scans of digits, sample new ones, and evaluate them.

Every step is a command that is printed before it runs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from steps import atconv, train

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-generate")
CLASSIFIER = Path("runs/demo")  # what `make demo` trains, if it has been run
GUIDANCE = "2"
DIGITS = ("digits", "--config", "digits")


def main() -> None:
    started = time.perf_counter()
    train(FOLDER, ["generate", "train"], *DIGITS)
    classifier = CLASSIFIER
    if not (classifier / "metrics.json").is_file():
        classifier = FOLDER.with_name(FOLDER.name + "-classifier")
        train(classifier, ["train"], *DIGITS, "--epochs", "20")
    grid = FOLDER / "grid.png"
    sampling = ["--guidance", GUIDANCE, "--sampler", "heun", "--steps", "15"]
    atconv("generate", "sample", str(FOLDER), "--classes", "0-9", *sampling, "--out", str(grid))
    atconv(
        "generate", "evaluate", str(FOLDER), "digits", "--features", str(classifier), *sampling,
        "--images", "500", "--memorization",
    )  # fmt: skip
    metrics = json.loads((FOLDER / "evaluation" / "digits-train" / "metrics.json").read_text())
    copied = metrics["memorization"]
    print(
        f"""
Done in {time.perf_counter() - started:.0f} s. Everything lies in {FOLDER}:
  grid.png          ten new scans of every digit, made with guidance {GUIDANCE}
  samples/          the same during training
  curves.png        the loss by epoch
  evaluation/       the metrics above

A classifier of real scans takes {metrics["classifier_accuracy"]:.1f} % of 500 samples for the digit they
should be. Are they copies? They lie {copied["ratio"]:.2f} times as far from the nearest training scan as
held-out real scans do, and {copied["below_first_percentile"]:.1f} % lie nearer than the nearest 1 % of those.

Try next:
  atconv generate sample {FOLDER} --classes 3,7 --guidance 3 --sampler sde_heun --out {FOLDER}/sde.png
  atconv generate sample {FOLDER} --per-class 100 --out {FOLDER}/samples.npz
  atconv generate train my-images --image-size 32 --out runs/mine"""
    )


if __name__ == "__main__":
    main()
