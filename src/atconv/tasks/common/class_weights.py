"""Options of a loss whose classes weigh differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atconv.data.imbalance import ClassWeights
from atconv.engine.options import BelowOne

__all__ = ["ClassWeightOptions"]


@dataclass(kw_only=True)
class ClassWeightOptions:
    """What a class weighs in the loss."""

    group: ClassVar[str] = "loss"
    common: ClassVar[tuple[str, ...]] = ()

    class_weights: ClassWeights = "none"
    """weight of each class: inverse to its images, boxes or pixels, or to how many are effective"""
    class_weight_beta: BelowOne = 0.999
    """β of effective: at 0 weights are equal, towards 1 they become those of inverse"""
