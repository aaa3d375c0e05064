"""Pictures of detections: boxes, names, scores and masks, readable at 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.font_manager import findfont
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from atconv.data.coco import CocoSplit
from atconv.plots import plt, save, shorten
from atconv.tasks.common.drawing import colors_of, shown_size
from atconv.tasks.detection.data import Target, picture_tensor, target_of
from atconv.tasks.detection.model import Detector

__all__ = ["draw_found", "draw_side"]

_SHOWN = 6
_SIDE = 480  # pixels of a picture's longer side, at least
_LINE, _FONT = 2, 13


def draw_found(image: Tensor, found: Target, classes: Sequence[str], threshold: float = 0.5) -> Tensor:
    """A picture with what was found in it.

    Args:
        image: C H W in 0…1.
        found: boxes (N 4) and labels, scores and masks (N H W) where there are any.
        classes: names of the labels, from 1.
        threshold: least score that is drawn.

    Returns:
        3 H W uint8, enlarged where the picture is small.
    """
    height, width = shown_size(image.shape[-2:], _SIDE)
    factor = width / image.shape[-1]
    shown = F.resize(image.expand(3, -1, -1), [height, width], antialias=True).mul(255).byte()
    scores = found.get("scores")
    kept = torch.ones(len(found["labels"]), dtype=torch.bool) if scores is None else scores >= threshold
    labels = found["labels"][kept].tolist()
    if not labels:
        return shown
    colors = colors_of(len(classes))
    drawn = [colors[label - 1] for label in labels]
    names = [shorten(classes[label - 1]) for label in labels]
    if scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, scores[kept].tolist(), strict=True)]
    if "masks" in found:
        large = F.resize(found["masks"][kept].float(), [height, width], antialias=False) > 0.5
        shown = draw_segmentation_masks(shown, large, alpha=0.45, colors=drawn)
    return draw_bounding_boxes(
        shown,
        found["boxes"][kept] * factor,
        labels=names,
        colors=drawn,
        width=_LINE,
        font=findfont("DejaVu Sans"),
        font_size=_FONT,
        label_colors="black",
        label_background_colors=drawn,
        fill_labels=True,
    )


@torch.inference_mode()
def draw_side(opened: Detector, side: CocoSplit, path: Path, threshold: float = 0.5) -> None:
    """The first pictures of a side: above what they show, below what was found."""
    count = min(_SHOWN, len(side))
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(4.6 * columns, 7.4 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for i in range(count):
        image = picture_tensor(side.read(i, opened.mode))
        found = opened.find(image)
        row, column = divmod(i, columns)
        annotated = target_of(side, i, opened.masks)
        for line, (title, what) in enumerate({"annotated": annotated, "found": found}.items()):
            axis = axes[2 * row + line, column]
            axis.imshow(draw_found(image, what, opened.classes, threshold).permute(1, 2, 0))
            axis.set_title(f"{shorten(side.names[i])}, {title}", fontsize=10)
    save(figure, path)
