"""Networks of equal size: dims of each variant that give it the reference's parameters to 2 %."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from atconv.tasks.classification.study import Study, Variant

__all__ = ["match_dims"]

_TOLERANCE = 0.02
_STEP = 4  # dims are multiples of it


def match_dims(study: Study) -> Study:
    """The study with dims that bring each variant within 2 % of the reference's parameters.

    Raises:
        ValueError: there are no such dims.
    """
    reference = study.variants[study.reference]
    base = study.dims(reference)
    target, _ = study.cost(reference)
    matched = {
        name: variant if variant is reference else replace(variant, dims=_match(study, variant, base, target))
        for name, variant in study.variants.items()
    }
    return replace(study, variants=matched)


def _match(study: Study, variant: Variant, base: Sequence[int], target: int) -> list[int]:
    """Scale all dims until the parameters pass the target, then choose among the neighbors."""
    low, high = 0.25, 4.0
    for _ in range(12):
        middle = (low + high) / 2
        below = _parameters(study, variant, _scaled(base, middle)) < target
        low, high = (middle, high) if below else (low, middle)
    near = _scaled(base, low)
    candidates = [
        [near[0], near[1], near[2] + _STEP * i, near[3] + _STEP * j]
        for i in range(-2, 3)
        for j in range(-3, 4)
        if near[2] + _STEP * i > 0 and near[3] + _STEP * j > 0
    ]
    errors = [abs(_parameters(study, variant, c) / target - 1) for c in candidates]
    heads = _heads(study, variant, base)

    def rank(i: int) -> tuple[bool, bool, float]:
        fits = errors[i] <= _TOLERANCE
        return not fits, not (fits and _keeps_heads(study, variant, candidates[i], heads)), errors[i]

    chosen = min(range(len(candidates)), key=rank)
    best = candidates[chosen]
    if errors[chosen] > _TOLERANCE:
        raise ValueError(
            f"{variant.name}: no dims near {best} have {target:,} parameters to 2 %: give the recipe wider "
            "stages (model_args: {dims: …}), or the variant other mixer_args"
        )
    return best


def _parameters(study: Study, variant: Variant, dims: Sequence[int]) -> int:
    return study.cost(replace(variant, dims=list(dims)))[0]


def _heads(study: Study, variant: Variant, dims: Sequence[int]) -> dict[int, int]:
    """Attention heads by stage, of the stages that have attention."""
    heads = {}
    with torch.device("meta"):
        model = study.build(replace(variant, dims=list(dims)))
    for name, module in model.named_modules():
        if isinstance(count := getattr(module, "num_heads", None), int):
            heads[int(name.split(".")[1])] = count  # stages.2.…
    return heads


def _keeps_heads(study: Study, variant: Variant, dims: Sequence[int], heads: dict[int, int]) -> bool:
    """Whether a variant of these dims has these heads, each of a multiple of 4 channels."""
    even = all(dims[stage] % (_STEP * count) == 0 for stage, count in heads.items())
    return not heads or (even and _heads(study, variant, dims) == heads)


def _scaled(dims: Sequence[int], factor: float) -> list[int]:
    return [max(_STEP, round(dim * factor / _STEP) * _STEP) for dim in dims]
