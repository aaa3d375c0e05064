"""`make demo-generate`: train a small ATConv SiT on real scans of digits, draw new ones, and judge them.

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
    judge = CLASSIFIER
    if not (judge / "metrics.json").is_file():
        judge = FOLDER.with_name(FOLDER.name + "-judge")
        train(judge, ["train"], *DIGITS, "--epochs", "20")
    grid = FOLDER / "grid.png"
    sampling = ["--guidance", GUIDANCE, "--sampler", "heun", "--steps", "15"]
    atconv("generate", "sample", str(FOLDER), "--classes", "0-9", *sampling, "--out", str(grid))
    atconv(
        "generate", "evaluate", str(FOLDER), "digits", "--features", str(judge), *sampling,
        "--images", "500", "--copies",
    )  # fmt: skip
    found = json.loads((FOLDER / "evaluation.json").read_text())
    copies = found["copies"]
    print(
        f"""
Done in {time.perf_counter() - started:.0f} s. Everything lies in {FOLDER}:
  grid.png          ten new scans of every digit, made with guidance {GUIDANCE}
  samples/          the same during training
  curves.png        the loss by epoch
  evaluation.json   the figures above

A classifier of real scans takes {found["recognized"]:.1f} % of 500 samples for the digit they should be.
Are they copies? They lie {copies["ratio"]:.2f} times as far from the nearest training scan as held-out real
scans do, and {copies["below_first_percentile"]:.1f} % lie nearer than the nearest 1 % of those.

Try next:
  atconv generate sample {FOLDER} --classes 3,7 --guidance 3 --sampler sde_heun --out {FOLDER}/sde.png
  atconv generate sample {FOLDER} --per_class 100 --out {FOLDER}/samples.npz
  atconv generate train my-pictures --image_size 32 --out runs/mine"""
    )


if __name__ == "__main__":
    main()
