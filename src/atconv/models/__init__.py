"""Ready models: AttNet (image backbones, registered with timm), SiT (diffusion, on diffusers), detectors and
segmenters on any timm backbone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from atconv.models.attnet import AttNet

if TYPE_CHECKING:
    from atconv.models.detectors import detector
    from atconv.models.segmenters import segmenter
    from atconv.models.sit import SiT, create_sit

__all__ = ["AttNet", "SiT", "create_sit", "detector", "segmenter"]

_LATE = {  # name → module and the extra that it needs
    "SiT": ("sit", "generation"),
    "create_sit": ("sit", "generation"),
    "detector": ("detectors", "dense"),
    "segmenter": ("segmenters", "dense"),
}


def __getattr__(name: str) -> object:
    """Import the others where they are asked for: they need extras, and take seconds."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _LATE[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs {error.name}: pip install 'atconv[{extra}]'") from error
