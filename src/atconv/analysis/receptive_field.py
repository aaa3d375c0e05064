"""Where the output at a position takes its value from, through a whole network."""

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
        position: row and column on the map; default: its middle.

    Returns:
        H W, not negative, of sum 1 (all zero where the position depends on nothing).

    Raises:
        ValueError: the features are no map, or the position is not on it.

    Source: Luo et al., arXiv 1701.04128.
    """
    inputs = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        found = features(inputs)
        if found.ndim != 4:
            raise ValueError(f"features must be a map B C h w, got {tuple(found.shape)}")
        height, width = found.shape[2:]
        row, column = position or (height // 2, width // 2)
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"position {(row, column)} is not on a map of {height} × {width}")
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(2, found.shape[:2], generator=generator).to(found) * 2 - 1
        (gradient,) = torch.autograd.grad((found[:, :, row, column] * signs).sum(), inputs)
    total = gradient.abs().cpu().double().sum(1).mean(0)
    return total / total.sum().clamp_min(torch.finfo(torch.float64).tiny)


def field_radius(field: Tensor) -> float:
    """Spread of a receptive field: the root mean square distance of its weight from its own center, in
    pixels; 0 for one pixel. `field` is H W."""
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in field.shape)
    field = field.double() / field.double().sum()
    spread = 0.0
    for places, weights in ((rows, field.sum(1)), (columns, field.sum(0))):
        center = (places * weights).sum()
        spread += float(((places - center).square() * weights).sum())
    return spread**0.5
