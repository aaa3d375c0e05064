"""What is compared, and with which options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
CLASSIFIER = HERE / "classifier"  # a run: distances are measured in its features
FAMILIES = {"attention": "sit_s_2", "hybrid": "sit_hybrid_s_2", "ATConv": "sit_atconv_s_2"}
SEEDS = 3
STEPS, GUIDANCE = 12, 1.5  # Heun's method: 24 velocity evaluations
SAMPLES = 1000


def read_recipe() -> dict[str, Any]:
    return dict(yaml.safe_load((HERE / "recipe.yaml").read_text()))
