"""Detection and segmentation on any timm backbone.

>>> model = atconv.models.detector("attnet_t2", num_classes=80)          # torchvision's Faster R-CNN
>>> model, transform, classes = atconv.tasks.dense.load("runs/mine")   # what `atconv detect train` made
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from atconv.models.detectors import detector

__all__ = ["detector", "load"]


def load(run: str | Path) -> tuple[nn.Module, Any, list[str]]:
    """Open the best model of a run of `atconv detect train` or `atconv segment train`.

    >>> model, transform, classes = atconv.tasks.dense.load("runs/boxes")
    >>> found = model([transform(Image.open("street.jpg"))])[0]          # boxes, labels (from 1), scores
    >>> model, transform, classes = atconv.tasks.dense.load("runs/masks")
    >>> logits = model(transform(Image.open("street.jpg"))[None])        # 1 K H W, padded to multiples of 32

    Args:
        run: the run's folder.

    Returns:
        the model in eval mode on the CPU; the transform from any PIL image to its input, C H W; the names of
        its classes, of which a detector's labels count from 1 and a segmenter's from 0.

    Raises:
        FileNotFoundError, ValueError: no such run, none of a dense task, or it has no model yet.
        ImportError: the extra is not installed.
    """
    from atconv.engine.run import Run

    task = Run.open(run).task
    if task == "segmentation":
        from atconv.tasks.segmentation.model import open_segmenter

        opened = open_segmenter(run)
        return opened.model, opened.transform, opened.classes
    from atconv.tasks.detection.model import open_detector

    found = open_detector(run)
    return found.model, found.transform, found.classes
