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
    near, heads = _scaled(base, low), _heads(study, variant, base)
    candidates = [
        [near[0], near[1] + _STEP * h, near[2] + _STEP * i, near[3] + _STEP * j]
        for h in (range(-2, 3) if heads else (0,))  # of the second stage, only where its heads may need it
        for i in range(-2, 3)
        for j in range(-3, 4)
    ]
    candidates = [dims for dims in candidates if min(dims) > 0]
    errors = [abs(_parameters(study, variant, dims) / target - 1) for dims in candidates]

    def rank(i: int) -> tuple[bool, int, int, float]:
        dims, fits = candidates[i], errors[i] <= _TOLERANCE
        other_heads = _other_heads(study, variant, dims, heads) if fits else 0
        return not fits, other_heads, abs(dims[1] - near[1]), errors[i]

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


def _other_heads(study: Study, variant: Variant, dims: Sequence[int], heads: dict[int, int]) -> int:
    """How many heads a variant of these dims has more or fewer than these, in all stages. Where heads are no
    multiple of 4 channels, the stage counts as if it had none."""
    own = _heads(study, variant, dims) if heads else {}
    even = {stage: count for stage, count in own.items() if dims[stage] % (_STEP * count) == 0}
    return sum(abs(count - even.get(stage, 0)) for stage, count in heads.items())


def _scaled(dims: Sequence[int], factor: float) -> list[int]:
    return [max(_STEP, round(dim * factor / _STEP) * _STEP) for dim in dims]
