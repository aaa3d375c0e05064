"""Attentive convolution: the expressivity of attention at the cost of a convolution.

>>> import atconv, timm
>>> mixer = atconv.ATConv2d(64)                                     # the operator, B C H W
>>> model = timm.create_model("attnet_t2", num_classes=10)          # the backbones, through timm
>>> model, transform, classes = atconv.load("runs/mine")            # what `atconv train` made
>>> report = atconv.replace_attention(vit)                          # a model that you have
"""

from atconv import functional
from atconv.engine.run import load
from atconv.models import attnet as _attnet  # noqa: F401  (registers the models with timm)
from atconv.models.release import load_release
from atconv.modules import ATConv2d, ATConvTokens
from atconv.ops.allocator import tune_allocator
from atconv.replace import distill_blocks, replace_attention

__version__ = "0.1.0"
__all__ = [
    "ATConv2d",
    "ATConvTokens",
    "distill_blocks",
    "functional",
    "load",
    "load_release",
    "replace_attention",
    "tune_allocator",
]
