"""Ready models: AttNet (image backbones, registered with timm) and SiT (diffusion, on diffusers)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atconv.models.attnet import AttNet

if TYPE_CHECKING:
    from atconv.models.sit import SiT, create_sit

__all__ = ["AttNet", "SiT", "create_sit"]


def __getattr__(name: str) -> object:
    """Import SiT only where it is asked for: diffusers is an extra, and takes a second."""
    if name not in ("SiT", "create_sit"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from atconv.models import sit
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs {error.name}: pip install 'atconv[generation]'") from error
    return getattr(sit, name)
