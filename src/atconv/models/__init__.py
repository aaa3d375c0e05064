"""Ready models: AttNet (image backbones, registered with timm), SiT (diffusion, on diffusers), detectors and
segmenters on any timm backbone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from atconv.extras import name_missing_extra
from atconv.models.attnet import AttNet

if TYPE_CHECKING:
    from atconv.models.detectors import detector
    from atconv.models.segmenters import segmenter
    from atconv.models.sit import SiT, create_sit

__all__ = ["AttNet", "SiT", "create_sit", "detector", "segmenter"]

_LATE = {"SiT": "sit", "create_sit": "sit", "detector": "detectors", "segmenter": "segmenters"}
"""modules by name"""


@name_missing_extra()
def __getattr__(name: str) -> object:
    """Import the others where they are asked for: they need extras, and take seconds."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
