"""Image generation with SiT: `atconv generate`."""

from __future__ import annotations

from atconv.tasks.generation.config import GenerationConfig, inherit_config
from atconv.tasks.spec import Publication, TaskSpec

__all__ = ["SPEC", "GenerationConfig"]


_MODEL = (
    "model_index.json",
    "pipeline.py",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)

SPEC = TaskSpec(
    name="generation",
    command="generate",
    config=GenerationConfig,
    data="an image folder, an LMDB file, a timm dataset name (torch/..., hfds/...), digits, or a folder of "
    "latents from atconv generate encode",
    inherit_config=inherit_config,
    panel="GenerationPanel",
    model_file="model_index.json",
    writes=("inhibition.csv", "samples.png", "samples/epoch-*.png", *_MODEL),
    tools=("train", "sample", "evaluate", "encode"),
    publication=Publication(
        pipeline_tag="unconditional-image-generation",
        library="diffusers",
        files=_MODEL,
        plots={"samples.png": "Samples", "curves.png": "Learning curves"},
        metrics={
            "val_loss": ("loss", ""),
            "frechet_distance": ("fid", ""),
            "kernel_distance": ("kid", ""),
            "precision": ("precision", " %"),
            "recall": ("recall", " %"),
            "classifier_accuracy": ("accuracy", " %"),
        },
        call="images = [result.pixels for result in predictor()]",
        libraries=(
            'from atconv.diffusion import SiTPipeline\n\npipe = SiTPipeline.from_pretrained("{name}")',
        ),
        limits=("Samples may resemble training images; look before you use them.",),
    ),
)
