"""Effective receptive fields: the pixels that the output at one position depends on, through a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["field_radius", "receptive_field"]


def receptive_field(
    features: Callable[[Tensor], Tensor], images: Tensor, position: tuple[int, int] | None = None
) -> Tensor:
    """The effective receptive field of one position of a feature map, by gradients.

    For each image, the gradient of the position's channels, weighted by random signs, with respect to the
    input; its absolute values are summed over input channels and averaged over images.

    Args:
        features: images B in H W → map B C h w, such as `model.forward_features`.
        images: B in H W.
        position: row and column on the map; default: its center.

    Returns:
        H W, not negative, of sum 1 (all zero where the position depends on nothing).

    Raises:
        ValueError: the features are no map, or the position is not on it.

    Source: Luo et al., arXiv 1701.04128.
    """
    inputs = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = features(inputs)
        if output.ndim != 4:
            raise ValueError(f"features must be a map B C h w, got {tuple(output.shape)}")
        height, width = output.shape[2:]
        row, column = position or (height // 2, width // 2)
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"position {(row, column)} is not on a map of {height} × {width}")
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(2, output.shape[:2], generator=generator).to(output) * 2 - 1
        (gradient,) = torch.autograd.grad((output[:, :, row, column] * signs).sum(), inputs)
    total = gradient.abs().cpu().double().sum(1).mean(0)
    return total / total.sum().clamp_min(torch.finfo(torch.float64).tiny)


def field_radius(field: Tensor) -> float:
    """Radius of a receptive field (H W) in pixels: the root mean square distance from its own center; 0 for
    a single pixel."""
    field = field.double() / field.double().sum()
    variance = 0.0
    for shares in (field.sum(1), field.sum(0)):
        places = torch.arange(len(shares), dtype=torch.float64, device=shares.device)
        center = (places * shares).sum()
        variance += float(((places - center).square() * shares).sum())
    return variance**0.5
