"""Is routing used? A trained network with the kernels of each layer averaged over the test images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import atconv
from atconv.modules import ATConv2d

__all__ = ["top1_with_averaged_kernels"]


def top1_with_averaged_kernels(run: Path, device: str = "cpu") -> float | None:
    """Top-1 on test images, percent, where no kernel depends on the image; None for a net without routing.

    A first pass averages the kernels of each layer over all images. In a second pass every image gets those.
    Lateral inhibition is linear, so averages before and after it are the same.
    """
    predictor = atconv.load(run).to(device)
    generators = [
        module.kernel_gen
        for module in predictor.model.modules()
        if isinstance(module, ATConv2d) and module.kernel_gen is not None
    ]
    if not generators:
        return None
    averages = [_Average(generator) for generator in generators]
    predictor.evaluate(split="test")
    for average in averages:
        average.give()
    return float(predictor.evaluate(split="test").top1)


class _Average:
    """The mean of a layer's outputs over samples; after `give` the layer's output for every sample."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.total, self.count = layer, torch.zeros(()), 0
        self.handle = layer.register_forward_hook(self._add)

    def _add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.total = self.total + output.double().sum(0, keepdim=True).cpu()
        self.count += len(output)

    def give(self) -> None:
        self.handle.remove()
        mean = self.total / self.count
        self.layer.register_forward_hook(lambda layer, inputs, output: mean.to(output).expand_as(output))
