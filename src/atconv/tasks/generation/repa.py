"""REPA: align a generator's tokens with a frozen encoder's patch tokens (arXiv 2410.06940)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv.models.release import read_checkpoint
from atconv.models.sit import SiT

__all__ = ["AlignedSiT", "FrozenEncoder", "alignment_loss"]

_HIDDEN = 2048  # width of the projector


class AlignedSiT(nn.Module):
    """A SiT and the projector that maps one block's tokens to an encoder's features. For training only.

    Args:
        sit: the model.
        block: the block whose tokens are projected, counted from 1.
        features: width of the encoder's tokens.
    """

    def __init__(self, sit: SiT, block: int, features: int) -> None:
        super().__init__()
        if block > len(sit.blocks):
            raise ValueError(f"repa_block {block} is beyond the {len(sit.blocks)} blocks of the model")
        self.sit, self.block = sit, block
        self.projector = nn.Sequential(
            nn.Linear(sit.hidden_size, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU(),
            nn.Linear(_HIDDEN, features),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Velocity B C H W, and projected tokens B N features."""
        velocity, tokens = self.sit.forward_features(x, t, labels, self.block)
        return velocity, self.projector(tokens)


class FrozenEncoder(nn.Module):
    """Patch tokens of a timm ViT for images in [−1, 1].

    Args:
        name: timm's name of a ViT, such as vit_base_patch14_dinov2.lvd142m.
        grid_size: rows and columns of the tokens.
        weights: a file; None for timm's pretrained weights; "none" for none.

    Raises:
        ValueError: no such encoder, it has no patch tokens, or its weights cannot be had.
    """

    def __init__(self, name: str, grid_size: tuple[int, int], weights: str | None) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"timm knows no encoder {name!r}; DINOv2-B is vit_base_patch14_dinov2.lvd142m")
        patch = _patch_size(name)
        self.size = (grid_size[0] * patch, grid_size[1] * patch)
        try:
            timm_model: Any = timm.create_model(
                name, pretrained=weights is None, num_classes=0, img_size=self.size
            )
        except Exception as error:  # no network, a hub without the file, a model without img_size
            raise ValueError(
                f"cannot make the encoder {name}: {str(error).partition(chr(10))[0]}; give its weights with "
                "--repa-weights FILE"
            ) from error
        self.encoder: Any = timm_model
        if weights not in (None, "none"):
            self._load(Path(str(weights)))
        self.encoder.eval().requires_grad_(False)
        self.features: int = timm_model.num_features
        self.mean: Tensor
        self.std: Tensor
        mean, std = (torch.tensor(timm_model.pretrained_cfg[key]) for key in ("mean", "std"))
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images B C H W in [−1, 1], gray or color → tokens B N features, row after row."""
        color = images.expand(-1, 3, -1, -1)
        scaled = F.interpolate(color, self.size, mode="bicubic", antialias=True, align_corners=False)
        tokens = self.encoder.forward_features(((scaled + 1) / 2 - self.mean) / self.std)
        return tokens[:, self.encoder.num_prefix_tokens :]

    def _load(self, path: Path) -> None:
        state = read_checkpoint(path)
        state = state.get("model", state)
        missing = [name for name in self.encoder.state_dict() if name not in state]
        if missing:
            raise ValueError(f"{path} does not hold the encoder's weights: {missing[0]} is missing")
        from timm.models.vision_transformer import checkpoint_filter_fn

        self.encoder.load_state_dict(checkpoint_filter_fn(dict(state), self.encoder))


def alignment_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Mean of −cos over all tokens; both B N D."""
    return -F.cosine_similarity(projected.float(), features.float(), dim=-1).mean()


def _patch_size(name: str) -> int:
    """Edge of a ViT's patches, in pixels."""
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    embed = getattr(model, "patch_embed", None)
    if embed is None or not hasattr(embed, "patch_size") or not hasattr(model, "num_prefix_tokens"):
        raise ValueError(
            f"{name} has no patch tokens: REPA takes a ViT, such as vit_base_patch14_dinov2.lvd142m"
        )
    return math.gcd(*embed.patch_size)
