"""What is compared, and where its files lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RUNS = Path("runs/study-generation")
JUDGE = HERE / "judge"  # the classifier whose features distances are measured in
FAMILIES = {"attention": "sit_s_2", "hybrid": "sit_hybrid_s_2", "ATConv": "sit_atconv_s_2"}
SEEDS = (0, 1, 2)
STEPS, GUIDANCE = 12, 1.5  # Heun's method: 24 velocity evaluations
SAMPLES = 1000


def read_recipe() -> dict[str, Any]:
    return dict(yaml.safe_load((HERE / "recipe.yaml").read_text()))
