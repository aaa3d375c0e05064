"""An untrained VAE that is small enough for tests, and latents of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from atconv.tasks.generation.encode import encode
from support.tiny import reset_accelerate


def tiny_vae(**changes: Any) -> AutoencoderKL:
    """Two pixels a latent, two latent channels."""
    arguments: dict[str, Any] = dict(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=2,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )
    torch.manual_seed(0)
    return AutoencoderKL(**(arguments | changes)).eval()


def encode_here(data: Path, vae: Path, out: Path, **changes: Any) -> Path:
    """`atconv generate encode` in this process."""
    reset_accelerate()
    options: dict[str, Any] = dict(image_size=16, shard_size=8, batch_size=3, device="cpu")
    return encode(str(data), str(vae), str(out), **(options | changes))
