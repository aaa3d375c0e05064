"""Plots of detections: boxes, names, scores and masks, readable at 100 %."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.font_manager import findfont
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from atconv.data.boxes import BoxSplit
from atconv.plots import plt, save, shorten
from atconv.tasks.common.drawing import class_colors, enlarged_size
from atconv.tasks.detection.data import DetectionTransform, Target, load_target

__all__ = ["draw_detections", "plot_split"]

_COUNT = 6
_MIN_SIZE = 480  # pixels of an image's longer side
_LINE, _FONT = 2, 13  # pixels, on images up to _PLAIN_SIZE; larger ones get larger ones
_PLAIN_SIZE = 960


def draw_detections(
    image: Tensor, detections: Target, classes: Sequence[str], threshold: float = 0.5
) -> Tensor:
    """An image with the objects in it.

    Args:
        image: C H W in 0…1.
        detections: boxes (N 4) and labels, scores and masks (N H W) where there are any.
        classes: names of the labels, from 1.
        threshold: lowest score that is drawn.

    Returns:
        3 H W uint8, enlarged where the image is small.
    """
    height, width = enlarged_size(image.shape[-2:], _MIN_SIZE)
    scale = max(1.0, max(height, width) / _PLAIN_SIZE)
    factor = width / image.shape[-1]
    drawn = F.resize(image.expand(3, -1, -1), [height, width], antialias=True).mul(255).byte()
    scores = detections.get("scores")
    shown = torch.ones_like(detections["labels"], dtype=torch.bool) if scores is None else scores >= threshold
    labels = detections["labels"][shown].tolist()
    if not labels:
        return drawn
    palette = class_colors(len(classes))
    colors = [palette[label - 1] for label in labels]
    names = [shorten(classes[label - 1]) for label in labels]
    if scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, scores[shown].tolist(), strict=True)]
    if "masks" in detections:
        masks = F.resize(detections["masks"][shown].float(), [height, width], antialias=False) > 0.5
        for mask, color in zip(masks.flip(0), reversed(colors), strict=True):  # most certain last, so on top
            drawn = draw_segmentation_masks(drawn, mask, alpha=0.45, colors=color)
    return draw_bounding_boxes(
        drawn,
        detections["boxes"][shown] * factor,
        labels=names,
        colors=colors,
        width=round(_LINE * scale),
        font=findfont("DejaVu Sans"),
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
    """The first images of a split: above their annotations, below the detections."""
    count = min(_COUNT, len(split))
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(4.6 * columns, 7.4 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for i in range(count):
        image = transform(split.read(i, transform.mode))
        row, column = divmod(i, columns)
        shown = {"annotated": load_target(split, i, masks), "detected": detect(image)}
        for line, (title, objects) in enumerate(shown.items()):
            axis = axes[2 * row + line, column]
            axis.imshow(draw_detections(image, objects, split.classes).permute(1, 2, 0))
            axis.set_title(f"{shorten(split.names[i])}, {title}", fontsize=10)
    save(figure, path)
