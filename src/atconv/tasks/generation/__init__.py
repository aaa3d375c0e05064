"""Image generation with SiT: `atconv generate`."""

from __future__ import annotations

from atconv.tasks.generation.config import GenerationConfig, inherit_config
from atconv.tasks.spec import TaskSpec

__all__ = ["SPEC", "GenerationConfig"]


SPEC = TaskSpec(
    name="generation",
    command="generate",
    config=GenerationConfig,
    data="an image folder, an LMDB file, a timm dataset name (torch/..., hfds/...), digits, or a folder of "
    "latents from atconv generate encode",
    inherit_config=inherit_config,
    writes=(
        "inhibition.csv",
        "samples.png",
        "samples/epoch-*.png",
        "model_index.json",
        "pipeline.py",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ),
    tools=("train", "sample", "evaluate", "encode"),
)
