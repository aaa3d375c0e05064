"""ATConv as modules: `ATConv1d`, `ATConv2d`, `ATConv3d` for maps (B C *S), `ATConvTokens` for tokens (B N C).

Thin: they own the layers and compose the steps of `atconv.functional` with them. Layers are called, so that
hooks, LoRA, offload, quantization and FSDP act on them.
"""

from atconv.modules.base import inhibition_strength
from atconv.modules.maps import ATConv1d, ATConv2d, ATConv3d
from atconv.modules.stepping import CausalState
from atconv.modules.tokens import ATConvTokens

__all__ = ["ATConv1d", "ATConv2d", "ATConv3d", "ATConvTokens", "CausalState", "inhibition_strength"]
