"""Plots of detections: boxes, names, scores and masks, readable at 100 %."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from atconv.data.boxes.split import BoxSplit
from atconv.plots import class_labels, shorten
from atconv.tasks.common.drawing import class_colors, drawn_size, find_font, plot_rows
from atconv.tasks.detection.data import DetectionTransform, Target, load_target

__all__ = ["draw_detections", "plot_split"]

_COUNT = 6
_WIDTH = 640  # pixels of an image in the plot of a split
_LINE, _FONT = 2, 13  # pixels, on images up to _PLAIN_SIZE; larger ones get larger ones
_PLAIN_SIZE = 960


def draw_detections(
    image: Tensor,
    detections: Target,
    classes: Sequence[str],
    threshold: float = 0.5,
    max_size: float = math.inf,
) -> Tensor:
    """An image with the objects in it.

    Args:
        image: C H W in 0…1.
        detections: boxes (N 4) and labels, scores and masks (N H W) where there are any.
        classes: names of the labels, from 1.
        threshold: lowest score that is drawn.
        max_size: longest side of the result.

    Returns:
        3 H W uint8, enlarged where the image is small.
    """
    height, width = drawn_size(image.shape[-2:], max_size)
    scale = max(1.0, max(height, width) / _PLAIN_SIZE)
    factors = torch.tensor([width / image.shape[-1], height / image.shape[-2]]).repeat(2)
    drawn = F.resize(image.expand(3, -1, -1), [height, width], antialias=True).mul(255).byte()
    scores = detections.get("scores")
    shown = torch.ones_like(detections["labels"], dtype=torch.bool) if scores is None else scores >= threshold
    labels = detections["labels"][shown].tolist()
    if not labels:
        return drawn
    palette = class_colors(len(classes))
    colors = [palette[label - 1] for label in labels]
    short = class_labels(classes)
    names = [short[label - 1] for label in labels]
    if scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, scores[shown].tolist(), strict=True)]
    if "masks" in detections:
        masks = detections["masks"][shown].flip(0)  # most certain last, so on top
        for mask, color in zip(masks, reversed(colors), strict=True):
            resized = F.resize(mask[None].float(), [height, width], antialias=False) > 0.5
            drawn = draw_segmentation_masks(drawn, resized, alpha=0.45, colors=color)
    return draw_bounding_boxes(
        drawn,
        detections["boxes"][shown] * factors,
        labels=names,
        colors=colors,
        width=round(_LINE * scale),
        font=find_font(names),
        font_size=round(_FONT * scale),
        label_colors="black",
        label_background_colors=colors,
        fill_labels=True,
    )


def plot_split(
    split: BoxSplit,
    detect: Callable[[Tensor], Target],
    transform: DetectionTransform,
    masks: bool,
    path: Path,
) -> None:
    """The first images of a split: their annotations, and the detections."""
    rows = []
    for i in range(min(_COUNT, len(split))):
        image, name = transform(split.read(i, transform.mode)), shorten(split.names[i])
        shown = {"annotated": load_target(split, i, masks), "detected": detect(image)}
        rows.append(
            [
                (f"{name}, {title}", draw_detections(image, objects, split.classes, max_size=_WIDTH))
                for title, objects in shown.items()
            ]
        )
    plot_rows(rows, path, _WIDTH)
