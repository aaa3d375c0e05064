"""What tools of the ecosystem are tried on: the operator, models made of it, and a ResNet as control."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from atconv import ATConv2d, ATConvTokens, replace_attention
from support.helpers import randomize, tiny_attnet
from support.tiny_sit import inputs_of, tiny_sit

__all__ = ["NETWORKS", "layers", "network"]

Network = tuple[nn.Module, tuple[Tensor, ...]]


def _replaced_vit() -> Network:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5
    )
    replace_attention(model)
    return model, (torch.randn(2, 3, 32, 32),)


def _sit() -> Network:
    model = tiny_sit(token_mixer="hybrid")
    return model, inputs_of(model)


NETWORKS: dict[str, Callable[[], Network]] = {
    "ATConv2d": lambda: (ATConv2d(8), (torch.randn(2, 8, 5, 6),)),
    "ATConvTokens": lambda: (ATConvTokens(8, num_prefix_tokens=1), (torch.randn(2, 17, 8),)),
    "AttNet": lambda: (tiny_attnet(), (torch.randn(2, 3, 40, 48),)),
    "SiT": _sit,
    "replaced ViT": _replaced_vit,
    "ResNet": lambda: (
        timm.create_model("resnet18", num_classes=5, channels=(8, 8, 16, 32), stem_width=8),
        (torch.randn(2, 3, 32, 32),),
    ),
}


def network(name: str) -> Network:
    """The network with weights that matter, in eval mode, and its inputs."""
    model, inputs = NETWORKS[name]()
    return randomize(model).eval(), inputs


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that holds parameters and no other module."""
    return {
        name: module
        for name, module in model.named_modules()
        if next(module.children(), None) is None and next(module.parameters(), None) is not None
    }
