"""What `make demo-detect` and `make demo-segment` share: garments, scenes, a classifier of garments.

Every step is a command that is printed before it runs.
"""

from __future__ import annotations

from pathlib import Path

from steps import python, train

ROOT = Path("runs/data")
SCENES = Path("runs/garment-scenes")
CLASSIFIER = Path("runs/garments")
# Both tasks start from it: a garment alone teaches its class at a twentieth of a scene's cost.
BACKBONE = "{depths: [1, 1, 3, 1], dims: [32, 64, 128, 192], mlp_ratios: [4, 4, 4, 4]}"


def prepare() -> None:
    """Scenes of garments, and a classifier of garments to start from, where they are not there yet."""
    if not (SCENES / "classes.txt").is_file():
        python("studies.datasets.fashion_mnist", str(ROOT))
        python("studies.datasets.scenes", str(ROOT), str(SCENES))
    train(
        CLASSIFIER, ["train"], "--config", "fashion_mnist", "--data-root", str(ROOT),
        "--model-args", BACKBONE, "--image-size", "32", "--crop-scale", "[0.7, 1.0]", "--epochs", "1",
        "--batch-size", "128", "--base-batch-size", "128", "--lr", "0.003", "--warmup-epochs", "0.2",
    )  # fmt: skip
