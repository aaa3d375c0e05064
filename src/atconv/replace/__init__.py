"""Put ATConv in the place of self-attention inside an existing model, and save and open such models."""

from atconv.replace.api import Replacement, ReplacementReport, replace_attention
from atconv.replace.saving import apply, describe, from_pretrained

__all__ = [
    "Replacement",
    "ReplacementReport",
    "apply",
    "describe",
    "from_pretrained",
    "replace_attention",
]
