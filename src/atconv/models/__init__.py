"""Ready models: AttNet (image backbones, registered with timm)."""

from atconv.models.attnet import AttNet

__all__ = ["AttNet"]
