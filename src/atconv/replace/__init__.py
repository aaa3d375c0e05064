"""Put ATConv in the place of self-attention or convolutions inside a model; save and open such models."""

from atconv.replace.api import replace_attention, replace_convolution
from atconv.replace.saving import apply, describe, from_pretrained
from atconv.replace.swap import Replacement, ReplacementReport

__all__ = [
    "Replacement",
    "ReplacementReport",
    "apply",
    "describe",
    "from_pretrained",
    "replace_attention",
    "replace_convolution",
]
