"""`atconv models`: the AttNet family."""

from __future__ import annotations

import logging

import torch

from atconv.engine.tables import Table
from atconv.models.attnet import VARIANTS, AttNet
from atconv.models.published import PUBLISHED_TOP1

__all__ = ["list_models"]

logger = logging.getLogger(__name__)


def list_models() -> None:
    """The AttNet family."""
    rows = []
    for name in VARIANTS:
        with torch.device("meta"):
            model = AttNet(**VARIANTS[name])
        count = sum(p.numel() for p in model.parameters())
        top1 = f"{PUBLISHED_TOP1[name]:.1f} %" if name in PUBLISHED_TOP1 else "–"
        rows.append((name, f"{count:,}", f"{model.macs(224, 224) / 1e9:.3f}", "3 × 224 × 224", top1))
    logger.info(
        Table("AttNet", ("model", "parameters", "GMACs", "input", "ImageNet-1K top-1, published"), rows)
    )
    logger.info(
        "GMACs: multiply-adds of convolutions and linear layers for one image. Published: by the paper's "
        "authors (arXiv 2510.20092), not measured by this project."
    )
