"""Plots of segmentations: colors over the image, and a legend; readable at 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from atconv.data.masks.split import IGNORED, MaskSplit
from atconv.plots import class_labels, shorten
from atconv.tasks.common.drawing import Color, class_colors, drawn_size, plot_rows
from atconv.tasks.segmentation.data import Classify, SegmentationTransform

__all__ = ["plot_prediction", "plot_split"]

_COUNT = 4
_WIDTH, _MAX_WIDTH = 480, 1200  # pixels of an image among others, and of one alone
_ALPHA = 0.55
_PLAIN = "background"  # a class of this name gets no color
_GRAY = (128, 128, 128)  # for ignored pixels


def plot_prediction(image: Image.Image, mask: Tensor, classes: Sequence[str], path: Path) -> None:
    """An image next to its classes, with a legend of those that occur.

    Args:
        mask: H W of class indices.
        path: PNG to write.
    """
    row = [("", _drawn(image, indices, classes, _MAX_WIDTH)) for indices in (None, mask)]
    width = row[0][1].shape[2]
    size = max(10.0, 15 * width / _WIDTH)  # readable where the plot is shown half as wide, as on a page
    plot_rows([row], path, width, _legend(mask.unique().tolist(), classes), size)


def plot_split(split: MaskSplit, classify: Classify, transform: SegmentationTransform, path: Path) -> None:
    """The first images of a split: as they are, with their masks, with their predictions."""
    rows, occurring = [], set()
    for i in range(min(_COUNT, len(split))):
        image, mask = split.read(i, transform.mode), torch.from_numpy(split.mask(i))
        predicted = classify(transform(image)[None], (image.height, image.width))[0]
        occurring |= {*mask.unique().tolist(), *predicted.unique().tolist()}
        shown = {shorten(split.names[i]): None, "mask": mask, "predicted": predicted}
        rows.append([(name, _drawn(image, each, split.classes, _WIDTH)) for name, each in shown.items()])
    plot_rows(rows, path, _WIDTH, _legend(sorted(occurring), split.classes))


def _drawn(image: Image.Image, mask: Tensor | None, classes: Sequence[str], max_size: int) -> Tensor:
    """The image and the colors of its classes but background, 3 H W of uint8."""
    size = list(drawn_size((image.height, image.width), max_size))
    shown = F.resize(F.pil_to_tensor(image.convert("RGB")), size, antialias=True)
    if mask is None:
        return shown
    indices = F.resize(mask[None], size, interpolation=InterpolationMode.NEAREST)[0]
    colors = _colors(indices.unique().tolist(), classes)
    if not colors:
        return shown
    masks = torch.stack([indices == i for i in colors])
    return draw_segmentation_masks(shown, masks, alpha=_ALPHA, colors=list(colors.values()))


def _colors(indices: Sequence[int], classes: Sequence[str]) -> dict[int, Color]:
    """Colors by index, of those that get one."""
    palette = class_colors(len(classes))
    colors = {i: palette[i] for i in indices if i != IGNORED and classes[i] != _PLAIN}
    return colors | ({IGNORED: _GRAY} if IGNORED in indices else {})


def _legend(indices: Sequence[int], classes: Sequence[str]) -> list[Patch]:
    names = class_labels(classes)
    return [
        Patch(
            color="#" + bytes(color).hex(),
            alpha=_ALPHA,
            label="ignored" if i == IGNORED else names[i],
        )
        for i, color in _colors(indices, classes).items()
    ]
