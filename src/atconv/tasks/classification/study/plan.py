"""What a study compares: one network, recipe and budget, a variant for each token mixer, all of one size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import nn

from atconv.data.splits import open_sources
from atconv.models.attnet import VARIANTS
from atconv.tasks.classification.config import ClassificationConfig

__all__ = ["Study", "Variant", "macs", "read_study"]

_TOLERANCE = 0.02
_STEP = 4  # widths are multiples of it


@dataclass(frozen=True)
class Variant:
    """One row of the study."""

    name: str
    token_mixer: str | list[str]
    """one for all stages, or one for each"""
    mixer_args: dict[str, Any] | list[dict[str, Any]]
    seeds: int

    @property
    def folder(self) -> str:
        """Its name as part of a path."""
        return re.sub(r"[\s/\\]", "-", self.name)


@dataclass(frozen=True)
class Study:
    """What is compared."""

    recipe: ClassificationConfig
    variants: list[Variant]
    reference: str

    @cached_property
    def classes(self) -> int:
        """Of the data."""
        return len(next(iter(open_sources(self.recipe).values())).classes)

    @property
    def jobs(self) -> list[tuple[Variant, int]]:
        """Every run, seed by seed, so that an early end leaves complete comparisons."""
        most = max(variant.seeds for variant in self.variants)
        return [(v, seed) for seed in range(most) for v in self.variants if seed < v.seeds]

    def config(self, variant: Variant, seed: int = 0) -> ClassificationConfig:
        """The configuration of a run."""
        widths = self.widths[variant.name]
        arguments = self.recipe.model_args | _mixer_of(variant) | {"dims": widths}
        return replace(self.recipe, model_args=arguments, seed=seed)

    @cached_property
    def widths(self) -> dict[str, list[int]]:
        """Widths of the four stages by variant: the recipe's for the reference, matched for the others.

        Raises:
            ValueError: no widths bring a variant within 2 % of the reference's parameters.
        """
        base = list(self.recipe.model_args.get("dims", VARIANTS[self.recipe.model]["dims"]))
        reference = next(v for v in self.variants if v.name == self.reference)
        target = self.parameters(reference, base)
        found = {v.name: self._match(v, base, target) for v in self.variants if v is not reference}
        return {reference.name: base, **found}

    def build(self, variant: Variant, widths: Sequence[int] | None = None) -> nn.Module:
        """The network of a variant, untrained."""
        arguments = self.recipe.model_args | _mixer_of(variant)
        arguments["dims"] = self.widths[variant.name] if widths is None else list(widths)
        return timm.create_model(
            self.recipe.model, in_chans=self.recipe.in_chans, num_classes=self.classes, **arguments
        )

    def parameters(self, variant: Variant, widths: Sequence[int]) -> int:
        """Of the network of a variant."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.build(variant, widths).parameters())

    def _match(self, variant: Variant, base: Sequence[int], target: int) -> list[int]:
        """Scale all widths until the parameters pass the target, then choose among the neighbors."""
        low, high = 0.25, 4.0
        for _ in range(12):
            middle = (low + high) / 2
            below = self.parameters(variant, _scaled(base, middle)) < target
            low, high = (middle, high) if below else (low, middle)
        near = _scaled(base, low)
        candidates = [
            [near[0], near[1], near[2] + _STEP * i, near[3] + _STEP * j]
            for i in range(-2, 3)
            for j in range(-3, 4)
            if near[2] + _STEP * i > 0 and near[3] + _STEP * j > 0
        ]
        off = [abs(self.parameters(variant, c) / target - 1) for c in candidates]
        heads = self._heads(variant, base)

        def rank(i: int) -> tuple[bool, bool, float]:
            fits = off[i] <= _TOLERANCE
            return not fits, not (fits and self._keeps(variant, candidates[i], heads)), off[i]

        chosen = min(range(len(candidates)), key=rank)
        best = candidates[chosen]
        if off[chosen] > _TOLERANCE:
            raise ValueError(
                f"{variant.name}: no widths near {best} have {target:,} parameters to 2 %: give the recipe "
                "wider stages (model_args: {dims: …}), or the variant other mixer_args"
            )
        return best

    def _heads(self, variant: Variant, widths: Sequence[int]) -> dict[int, int]:
        """Attention heads by stage, of the stages that have attention."""
        found = {}
        with torch.device("meta"):
            for name, module in self.build(variant, widths).named_modules():
                if isinstance(heads := getattr(module, "num_heads", None), int):
                    found[int(name.split(".")[1])] = heads  # stages.2.…
        return found

    def _keeps(self, variant: Variant, widths: Sequence[int], heads: dict[int, int]) -> bool:
        """Whether a variant of these widths has these heads, each of a multiple of 4 channels."""
        even = all(widths[stage] % (_STEP * count) == 0 for stage, count in heads.items())
        return not heads or (even and self._heads(variant, widths) == heads)


def read_study(path: str | Path) -> Study:
    """Read a study's YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not describe a study, or one of its mixers cannot be built.
    """
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        _check_names("the study", given, {"reference", "seeds", "recipe", "variants"})
        _check_names("the recipe", given["recipe"], {field.name for field in fields(ClassificationConfig)})
        recipe = ClassificationConfig(**given["recipe"])
        variants = [_read_variant(name, told, given["seeds"]) for name, told in given["variants"].items()]
        reference = given["reference"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {path}; give a study's YAML file") from error
    except KeyError as error:
        raise ValueError(f"{path} does not describe a study: {error} is missing") from error
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe a study: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if reference not in [variant.name for variant in variants]:
        raise ValueError(f"{path}: the reference {reference!r} is not among the variants")
    folders = [variant.folder for variant in variants]
    if len(set(folders)) < len(folders):
        raise ValueError(f"{path}: two variants share a folder, their names differ in spaces or slashes")
    if recipe.model not in VARIANTS or not isinstance(recipe.model_args, dict):
        raise ValueError(
            f"{path}: the recipe takes a model among {', '.join(VARIANTS)} and model_args as a mapping, "
            f"got {recipe.model} and {recipe.model_args}"
        )
    return Study(recipe, variants, reference)


def _read_variant(name: str, told: dict[str, Any], seeds: int) -> Variant:
    _check_names(f"the variant {name!r}", told, {"token_mixer", "mixer_args", "seeds"})
    seeds = told.get("seeds", seeds)
    if type(seeds) is not int or seeds < 1:
        raise ValueError(f"the variant {name!r} must have 1 seed or more, a whole number, got {seeds}")
    variant = Variant(str(name), told["token_mixer"], told.get("mixer_args", {}), seeds)
    with torch.device("meta"):  # complains early
        timm.create_model("attnet_xxs", **_mixer_of(variant))
    return variant


def _check_names(what: str, given: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"{what} has no {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def macs(study: Study, variant: Variant) -> int:
    """Of one image."""
    with torch.device("meta"):
        model: Any = study.build(variant)
    side = study.recipe.image_size
    return int(model.macs(side, side))


def _mixer_of(variant: Variant) -> dict[str, Any]:
    return {"token_mixer": variant.token_mixer, "mixer_args": variant.mixer_args}


def _scaled(widths: Sequence[int], factor: float) -> list[int]:
    return [max(_STEP, round(width * factor / _STEP) * _STEP) for width in widths]
