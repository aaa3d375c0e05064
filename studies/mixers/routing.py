"""Is routing used? A trained network with kernels that do not follow its image."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import atconv
from atconv.modules import ATConv2d

__all__ = ["top1_with_other_kernels"]


def top1_with_other_kernels(run: Path, device: str = "cpu") -> dict[str, float]:
    """Top-1 on test images, percent, where every image gets the kernels averaged over all of them, and where
    each gets those of another image, drawn at random. Empty for a network without routing.

    A first pass keeps the kernels that each layer makes for each image. Lateral inhibition is linear, so
    averages before and after it are the same. Averages are no kernels that the network has met; those of
    another image are, and differ from its own in content alone.
    """
    predictor = atconv.load(run).to(device)
    generators = [
        module.kernel_gen
        for module in predictor.model.modules()
        if isinstance(module, ATConv2d) and module.kernel_gen is not None
    ]
    if not generators:
        return {}
    layers = [_Kernels(generator) for generator in generators]
    predictor.evaluate(split="test")
    kept = [torch.cat(layer.made) for layer in layers]
    order = torch.randperm(len(kept[0]), generator=torch.Generator().manual_seed(0))

    def top1_with(others: list[Tensor]) -> float:
        for layer, kernels in zip(layers, others, strict=True):
            layer.given = kernels
        return float(predictor.evaluate(split="test").top1)

    return {
        "top1_averaged_kernels": top1_with([own.double().mean(0).to(own).expand_as(own) for own in kept]),
        "top1_another_images_kernels": top1_with([own[order] for own in kept]),
    }


class _Kernels:
    """The kernels that a layer makes for each image, in their order; or those that it is `given` for all of
    them, to use in a pass instead of its own."""

    def __init__(self, layer: nn.Module) -> None:
        self.made: list[Tensor] = []
        self.given: Tensor | None = None
        layer.register_forward_hook(self._exchange)

    def _exchange(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.given is None:
            self.made.append(output.cpu())
            return None
        batch, self.given = self.given.split([len(output), len(self.given) - len(output)])
        return batch.to(output)
