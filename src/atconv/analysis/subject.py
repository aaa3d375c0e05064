"""One run and some pictures: every number that `atconv analyze` shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data import resolve_data_config
from torch import Tensor, nn

from atconv.analysis.explanation import class_activation
from atconv.analysis.features import (
    as_map,
    collect_outputs,
    mixer_layers,
    prefix_tokens,
    spread,
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
from atconv.analysis.routing import before_inhibition, collect_kernels, hold_kernels
from atconv.data.images import read_image
from atconv.engine import run as runs
from atconv.modules import ATConv2d, ATConvTokens, inhibition_strength

__all__ = ["Answer", "Field", "Layer", "Subject"]

_SOME = 16  # pictures behind receptive fields
_FEW = 4  # pictures behind a rollout: attention weights are large
_OPERATOR = (ATConv2d.__name__, ATConvTokens.__name__)
_FINE = 7  # positions along a map that can show where


@dataclass(frozen=True)
class Layer:
    """The figures of one token mixer; None where it has no such thing."""

    name: str
    kind: str
    routing: RoutingVariance | None
    kernel: KernelShape | None
    uninhibited: KernelShape | None
    """of the kernels before lateral inhibition"""
    inhibition: float | None
    """mean λ over its channels"""
    redundancy: Redundancy

    @property
    def is_operator(self) -> bool:
        """ATConv, whole or ablated."""
        return self.kind in _OPERATOR


@dataclass(frozen=True)
class Field:
    """Where the middle of a stage's map takes its value from."""

    stage: str
    map_size: tuple[int, int]
    views: dict[str, Tensor]
    """each H W, of sum 1. By gradients through the network: "gradient" over some pictures, "one picture" of
    the first, "kernels held" without the way through the kernels. By rollout through the stage's global
    self-attention: "attention". Those that there are"""

    @property
    def spreads(self) -> dict[str, float]:
        """Of the views, in pixels of the input."""
        return {name: field_radius(view) for name, view in self.views.items()}


@dataclass(frozen=True)
class Answer:
    """What the model says of one picture, and where that comes from."""

    name: str
    probability: float
    where: Tensor
    """h w, 0…1"""


class Subject:
    """A run's best model and the pictures it is shown.

    Args:
        run: folder of a classification run.
        pictures: readable picture files.
        device: where the model runs.

    Raises:
        FileNotFoundError, ValueError: no such run, or it has no model or no token mixer that is known here.
    """

    def __init__(self, run: str | Path, pictures: Sequence[Path], device: torch.device) -> None:
        self.path = Path(run)
        self.model, transform, self.classes = runs.load(run)
        self.layers = mixer_layers(self.model)
        if not self.layers:
            raise ValueError(
                f"{run} has no token mixer to look into (it holds a {type(self.model).__name__}): give the "
                "run of an AttNet, or of another model with ATConv or timm's attention"
            )
        self.model.to(device)
        mode = transform.prepare.mode
        self.images = torch.stack([transform(read_image(path, mode)) for path in pictures]).to(device)
        with torch.inference_mode():
            self.probabilities = self.model(self.images).float().softmax(1).cpu()

    @property
    def has_operator(self) -> bool:
        """It contains ATConv, whole or ablated."""
        return any(kind in _OPERATOR for kind in self.kinds)

    @property
    def kinds(self) -> list[str]:
        """Classes of its token mixers."""
        return sorted({type(self.model.get_submodule(name)).__name__ for name in self.layers})

    def routes(self, layer: str) -> bool:
        """Whether an ATConv layer makes its kernels from the picture."""
        return bool(getattr(self.model.get_submodule(layer), "routing", False))

    def pictures(self, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Some of the pictures as the model sees them, cropped and scaled: H W (gray) or H W 3."""
        config: Any = self.model.pretrained_cfg
        data = resolve_data_config({}, pretrained_cfg=config)
        mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
        seen = (self.images[list(indices)].cpu() * std + mean).clamp(0, 1).mul(255).round().byte()
        return [x[0].numpy() if len(x) == 1 else x.permute(1, 2, 0).numpy() for x in seen]

    def labels(self, folders: Sequence[str]) -> tuple[Tensor, int]:
        """The class of each picture: its folder's name where that is a class, else what the model says; and
        how many folders were classes."""
        index = {name: i for i, name in enumerate(self.classes)}
        given = torch.tensor([index.get(folder, -1) for folder in folders])
        return torch.where(given >= 0, given, self.probabilities.argmax(1)), int((given >= 0).sum())

    def kernels(self) -> dict[str, Tensor]:
        """The kernels of every layer that has some, B C K K or 1 C K K."""
        try:
            return {name: made.cpu() for name, made in collect_kernels(self.model, self.images).items()}
        except ValueError:  # no kernels, such as in a model of attention alone
            return {}

    @torch.no_grad()
    def measure(self, kernels: dict[str, Tensor], labels: Tensor) -> list[Layer]:
        """The figures of every token mixer, first to last."""
        features = collect_outputs(self.model, self.images, self.layers)
        strengths, modules = inhibition_strength(self.model), dict(self.model.named_modules())
        found = []
        for name in self.layers:
            made, strength, output = kernels.get(name), strengths.get(name), features[name]
            raw = (
                before_inhibition(made, strength.cpu()) if made is not None and strength is not None else None
            )
            found.append(
                Layer(
                    name,
                    type(modules[name]).__name__,
                    None if made is None else routing_variance(made, labels),
                    _shape(made),
                    _shape(raw),
                    None if strength is None else float(strength.mean()),
                    redundancy(output if output.ndim == 4 else output.mT[..., None]),
                )
            )
        return found

    def fields(self) -> list[Field]:
        """The receptive field of every stage that ends in a map or a grid of tokens; its global
        self-attention's rollout."""
        some, found = self._some(_SOME), []
        routed = any(self.routes(layer) for layer in self.layers)
        try:
            weights = collect_attention(self.model, self._some(_FEW))
        except ValueError:  # no attention
            weights = {}
        stages, prefix = stage_layers(self.model), prefix_tokens(self.model)
        for stage, map_size in self._grids.items():
            inside = tuple(f"{part}." for part in stages[stage])
            layers = [weight for name, weight in weights.items() if name.startswith(inside)]
            features = _up_to(self.model, stage)
            views = {
                "gradient": receptive_field(features, some),
                "one picture": receptive_field(features, some[:1]),
            }
            if routed:
                with hold_kernels(self.model):
                    views["kernels held"] = receptive_field(features, some)
            if layers:
                spatial = rollout(layers)[:, prefix:, prefix:]
                views["attention"] = _seen_from_the_middle(spatial, map_size, views["gradient"])
            found.append(Field(stage, map_size, views))
        return found

    def answers(self, indices: Sequence[int]) -> tuple[list[Answer], str]:
        """What is said of some of the pictures, explained at the deepest map that can show where; and that
        map's layer. Nothing for a model without maps."""
        maps = {name: size for name, size in self._grids.items() if self._ends[name].ndim == 4}
        if not maps:
            return [], ""
        fine = [name for name, size in maps.items() if min(size) >= _FINE]
        layer = fine[-1] if fine else max(maps, key=lambda name: min(maps[name]))
        probabilities, said = self.probabilities[list(indices)].max(1)
        asked = self.images[list(indices)]
        where = class_activation(self.model, asked, said.to(asked.device), layer)
        rows = zip(said.tolist(), probabilities.tolist(), where.cpu(), strict=True)
        return [Answer(self.classes[index], share, place) for index, share, place in rows], layer

    def _some(self, most: int) -> Tensor:
        """Pictures spread evenly over all of them, which often come sorted by class."""
        return self.images[spread(range(len(self.images)), most)]

    @cached_property
    def _ends(self) -> dict[str, Tensor]:
        """What the stages of the backbone put out for a picture."""
        with torch.no_grad():
            return collect_outputs(self.model, self.images[:1], stage_layers(self.model))

    @cached_property
    def _grids(self) -> dict[str, tuple[int, int]]:
        """Height and width of the maps, or grids of tokens, that the stages end in."""
        image_size = (self.images.shape[2], self.images.shape[3])
        maps = {name: as_map(self.model, y, image_size) for name, y in self._ends.items()}
        return {name: (y.shape[2], y.shape[3]) for name, y in maps.items() if y is not None}


def _up_to(model: nn.Module, layer: str) -> Callable[[Tensor], Tensor]:
    def features(images: Tensor) -> Tensor:
        output = collect_outputs(model, images, [layer])[layer]
        found = as_map(model, output, (images.shape[2], images.shape[3]))
        return output if found is None else found

    return features


def _shape(kernels: Tensor | None) -> KernelShape | None:
    return None if kernels is None or kernels.shape[-1] == 1 else kernel_shape(kernels)


def _seen_from_the_middle(rolled: Tensor, map_size: tuple[int, int], like: Tensor) -> Tensor:
    """What the middle token takes from each, B N N → a picture of the size of `like`, of sum 1."""
    height, width = map_size
    middle = rolled[:, height // 2 * width + width // 2].mean(0).cpu().double().view(1, 1, height, width)
    field = torch.nn.functional.interpolate(middle, like.shape, mode="nearest")[0, 0]
    return field / field.sum()
