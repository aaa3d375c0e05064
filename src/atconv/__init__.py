"""Attentive convolution: the expressivity of attention at the cost of a convolution.

>>> import atconv, timm
>>> mixer = atconv.ATConv2d(64)                                     # the operator, B C H W
>>> model = timm.create_model("attnet_t2", num_classes=10)          # the backbones, through timm
>>> predictor = atconv.load("runs/mine")                            # what `atconv train` made
>>> report = atconv.replace_attention(vit)                          # a model that you have
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from atconv import functional
from atconv.extras import name_missing_extra
from atconv.models import attnet as _attnet  # noqa: F401  (registers the models with timm)
from atconv.models.release import load_release
from atconv.modules import ATConv1d, ATConv2d, ATConv3d, ATConvTokens
from atconv.ops.allocator import tune_allocator
from atconv.replace import replace_attention, replace_convolution

if TYPE_CHECKING:
    from atconv.engine.predictor import Predictor

__version__ = "0.1.0"
__all__ = [
    "ATConv1d",
    "ATConv2d",
    "ATConv3d",
    "ATConvTokens",
    "functional",
    "load",
    "load_release",
    "replace_attention",
    "replace_convolution",
    "tune_allocator",
]


@name_missing_extra()
def load(run: str | Path) -> Predictor[Any, Any]:
    """Open the best model of a run of any task; see `atconv.tasks.load`."""
    from atconv.tasks import load

    return load(run)
