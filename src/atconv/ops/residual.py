"""x + drop_path(scale(y)), in one pass over memory."""

from __future__ import annotations

import torch
import torch.fx
from timm.layers import DropPath, LayerScale2d
from torch import Tensor, nn

from atconv.ops.plain import is_plain
from atconv.ops.tracing import is_symbolic

__all__ = ["add_branch", "add_scaled"]
torch.fx.wrap("add_scaled")  # a node of torch.fx's graphs


def add_branch(x: Tensor, y: Tensor, scale: nn.Module, drop_path: nn.Module) -> Tensor:
    """x + drop_path(scale(y)) of maps B C H W."""
    drops = is_plain(drop_path, DropPath)
    if not is_plain(scale, LayerScale2d) or not (drops or is_plain(drop_path, nn.Identity)):
        return x + drop_path(scale(y))
    gamma = scale.gamma.view(-1, 1, 1)
    if drops and drop_path.training:  # the scales are dropped, which are few
        gamma = drop_path(gamma.expand(y.shape[0], -1, -1, -1))
    return add_scaled(x, y, gamma)


def add_scaled(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """x + scale·y."""
    # Core ML has no addcmul, a compiler fuses, and the gradient of addcmul takes a pass more.
    if is_symbolic() or torch.is_grad_enabled():
        return x + y * scale
    return torch.addcmul(x, y, scale)
