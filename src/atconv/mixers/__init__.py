"""Every token mixer that a backbone can be built with, under one signature: B C H W → B C H W.

>>> from atconv.mixers import create_mixer
>>> create_mixer("window_attention", 64)(torch.randn(2, 64, 14, 14)).shape
torch.Size([2, 64, 14, 14])
>>> timm.create_model("attnet_xxs", token_mixer="attention")
>>> timm.create_model("attnet_xxs", token_mixer=["atconv", "atconv", "attention", "attention"])
>>> timm.create_model("attnet_xxs", token_mixer="atconv", mixer_args={"routing": False})

`MIXERS` holds the source of each and how its cost grows; each has `macs(height, width)`.
"""

from __future__ import annotations

from atconv.mixers.registry import MIXERS, Mixer, create_mixer

__all__ = ["MIXERS", "Mixer", "create_mixer"]
