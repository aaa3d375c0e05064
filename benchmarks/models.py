"""The networks that are measured, and the check that what is timed computes what it should."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atconv.models  # noqa: F401  (registers AttNet with timm)
from floor import list_products
from plain import plain_attnet

__all__ = ["OTHERS", "attnet", "check_floor", "check_same", "check_same_step", "images", "other", "plain"]

NAME = "attnet_t2"
# of timm
OTHERS = {
    "ConvNeXt-T": "convnext_tiny",
    "Swin-T": "swin_tiny_patch4_window7_224",
    "DeiT-S": "deit_small_patch16_224",
}


def attnet(dtype: torch.dtype = torch.float32) -> Any:
    """AttNet-T2 whose LayerScales matter, as they do after training."""
    torch.manual_seed(0)
    model = timm.create_model(NAME).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter, std=0.5)
    return model.to(dtype)


def plain(dtype: torch.dtype = torch.float32) -> nn.Module:
    """The plain transcription, with the same weights. It multiplies more: context at every position."""
    return plain_attnet(attnet()).to(dtype)


def other(name: str, dtype: torch.dtype = torch.float32, size: int = 224) -> nn.Module:
    """A model of timm for images of a size."""
    sized = {} if "convnext" in name or "attnet" in name or size == 224 else {"img_size": size}
    return timm.create_model(name, **sized).eval().to(dtype)


def images(batch: int, size: int = 224, dtype: torch.dtype = torch.float32) -> Tensor:
    """As a loader gives them: B 3 H W, channels first."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)


@torch.inference_mode()
def check_same(expected: nn.Module, model: nn.Module, x: Tensor) -> None:
    """Outputs agree to rounding, which random weights blow up: bfloat16 lies 0.11 from float32 here.

    Raises:
        AssertionError: they do not.
    """
    wanted, got = expected(x).float(), model(x).float()
    error = float((got - wanted).norm() / wanted.norm())
    assert error < (1e-4 if x.dtype == torch.float32 else 0.15), f"outputs differ by {error:.2g}"


def check_same_step(expected: nn.Module, model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    """A backward pass reaches the first convolution with the same gradient, to rounding.

    Raises:
        AssertionError: it does not.
    """
    gradients = []
    for network in (expected, model):
        mode = network.training
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(network.train()(x), torch.arange(len(x)))
        loss.backward()
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        assert first.weight.grad is not None
        gradients.append(first.weight.grad.clone())
        network.zero_grad()
        network.train(mode)
    wanted, got = gradients
    error = float((got - wanted).norm() / wanted.norm())
    assert error < (1e-4 if dtype == torch.float32 else 0.1), f"gradients differ by {error:.2g}"


def check_floor() -> None:
    """The list of products is complete: its sum is the model's own count.

    Raises:
        AssertionError: it is not.
    """
    model = attnet()
    listed = sum(p.macs * count for p, count in list_products(model, images(1)).items())
    assert listed == model.macs(224, 224), (listed, model.macs(224, 224))
