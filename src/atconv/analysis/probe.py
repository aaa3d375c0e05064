"""All measures of one model on a batch of images: by token mixer and by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atconv.analysis.features import (
    as_map,
    collect_outputs,
    evenly_spaced,
    mixer_layers,
    prefix_tokens,
    stage_layers,
)
from atconv.analysis.measures import (
    KernelShape,
    Redundancy,
    RoutingVariance,
    kernel_shape,
    redundancy,
    routing_variance,
)
from atconv.analysis.receptive_field import field_radius, receptive_field
from atconv.analysis.rollout import collect_attention, rollout
from atconv.analysis.routing import before_inhibition, collect_kernels, detach_kernels
from atconv.modules import ATConv2d, ATConvTokens, inhibition_strength

__all__ = ["LayerMeasures", "StageField", "has_routing", "measure_layers", "stage_fields"]

_FIELD_IMAGES = 16
_ROLLOUT_IMAGES = 4  # attention weights are large


@dataclass(frozen=True)
class LayerMeasures:
    """Measures of one token mixer; None where they do not apply to it."""

    name: str
    kind: str
    """the mixer's class"""
    routing: RoutingVariance | None
    kernel: KernelShape | None
    kernel_before_inhibition: KernelShape | None
    inhibition: float | None
    """mean λ over its channels"""
    redundancy: Redundancy

    @property
    def is_atconv(self) -> bool:
        """It is ATConv, in full or ablated."""
        return self.kind in (ATConv2d.__name__, ATConvTokens.__name__)


@dataclass(frozen=True)
class StageField:
    """Receptive fields of the center of a stage's map."""

    stage: str
    map_size: tuple[int, int]
    views: dict[str, Tensor]
    """H W of sum 1 each. By gradients through the network: "gradient", the mean over some images;
    "one image", of the first alone; "fixed kernels", without the dependence through ATConv's kernels. By
    rollout through the stage's global self-attention: "attention". Views that do not apply are missing"""

    @property
    def radii(self) -> dict[str, float]:
        """Radius of each view, in pixels of the input."""
        return {name: field_radius(view) for name, view in self.views.items()}


def has_routing(model: nn.Module) -> bool:
    """Whether any ATConv mixer of the model makes its kernels from the image."""
    return any(getattr(model.get_submodule(name), "routing", False) for name in mixer_layers(model))


@torch.no_grad()
def measure_layers(model: nn.Module, images: Tensor, labels: Tensor) -> list[LayerMeasures]:
    """Measures of every token mixer, first to last.

    Args:
        images: B in H W, on the model's device.
        labels: B class indices, for the part of the routing variance that classes explain.
    """
    names, modules = mixer_layers(model), dict(model.named_modules())
    outputs, strengths = collect_outputs(model, images, names), inhibition_strength(model)
    try:
        kernels = collect_kernels(model, images)
    except ValueError:  # a model of attention alone has no kernels
        kernels = {}
    measures = []
    for name in names:
        kernel, strength = kernels.get(name), strengths.get(name)
        inhibited = kernel is not None and strength is not None
        measures.append(
            LayerMeasures(
                name,
                type(modules[name]).__name__,
                None if kernel is None else routing_variance(kernel, labels),
                _shape(kernel),
                _shape(before_inhibition(kernel, strength)) if inhibited else None,  # type: ignore[arg-type]
                None if strength is None else float(strength.mean()),
                redundancy(outputs[name]),
            )
        )
    return measures


def stage_fields(model: nn.Module, images: Tensor) -> list[StageField]:
    """Receptive fields of every stage that ends in a map or in a grid of tokens.

    Args:
        images: B in H W, on the model's device; some of them are used.
    """
    height, width = images.shape[2:]
    stages, prefix, routing = stage_layers(model), prefix_tokens(model), has_routing(model)
    few = images[evenly_spaced(range(len(images)), _ROLLOUT_IMAGES)]
    images = images[evenly_spaced(range(len(images)), _FIELD_IMAGES)]
    try:
        weights = collect_attention(model, few)
    except ValueError:  # no global self-attention
        weights = {}
    with torch.no_grad():
        ends = collect_outputs(model, images[:1], stages)
    fields = []
    for stage, output in ends.items():
        end = as_map(model, output, (height, width))
        if end is None:
            continue
        map_size = (end.shape[2], end.shape[3])
        features = _features(model, stage)
        views = {
            "gradient": receptive_field(features, images),
            "one image": receptive_field(features, images[:1]),
        }
        if routing:
            with detach_kernels(model):
                views["fixed kernels"] = receptive_field(features, images)
        prefixes = tuple(f"{layer}." for layer in stages[stage])
        layers = [layer for name, layer in weights.items() if name.startswith(prefixes)]
        if layers:
            spatial = rollout(layers)[:, prefix:, prefix:]
            views["attention"] = _center_field(spatial, map_size, (height, width))
        fields.append(StageField(stage, map_size, views))
    return fields


def _features(model: nn.Module, layer: str) -> Callable[[Tensor], Tensor]:
    def features(images: Tensor) -> Tensor:
        output = as_map(
            model, collect_outputs(model, images, [layer])[layer], (images.shape[2], images.shape[3])
        )
        assert output is not None
        return output

    return features


def _shape(kernels: Tensor | None) -> KernelShape | None:
    return None if kernels is None or kernels.shape[-1] == 1 else kernel_shape(kernels)


def _center_field(attention: Tensor, map_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """How much the center token depends on each, from B N N → H W of the image's size and sum 1."""
    height, width = map_size
    center = attention[:, height // 2 * width + width // 2].mean(0).cpu().double().view(1, 1, height, width)
    field = torch.nn.functional.interpolate(center, image_size, mode="nearest")[0, 0]
    return field / field.sum()
