"""Plots of segmentations: colors over the image, and a legend; readable at 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from atconv.data.masks import IGNORED, MaskSplit
from atconv.plots import plt, save, shorten
from atconv.tasks.common.drawing import Color, class_colors, enlarged_size
from atconv.tasks.segmentation.data import Classify, SegmentationTransform

__all__ = ["plot_prediction", "plot_split"]

_COUNT = 4
_MIN_SIZE = 480  # pixels of an image's longer side
_DPI = 110
_ALPHA = 0.55
_PLAIN = "background"  # a class of this name gets no color
_GRAY = (128, 128, 128)  # for ignored pixels


def plot_prediction(image: Image.Image, mask: Tensor, classes: Sequence[str], path: Path) -> None:
    """An image next to its classes, with a legend of those that occur.

    Args:
        mask: H W of class indices.
        path: PNG to write.
    """
    height, width = enlarged_size((image.height, image.width), _MIN_SIZE)
    figure, axes = plt.subplots(
        1, 2, figsize=(2 * width / _DPI + 0.3, height / _DPI + 0.9), layout="constrained"
    )
    _show(axes[0], image, None, classes)
    _show(axes[1], image, mask, classes)
    _legend(figure, mask.unique().tolist(), classes)
    save(figure, path, _DPI)


def plot_split(split: MaskSplit, classify: Classify, transform: SegmentationTransform, path: Path) -> None:
    """The first images of a split: as they are, with their masks, with their predictions."""
    count = min(_COUNT, len(split))
    figure, axes = plt.subplots(
        count, 3, figsize=(13.8, 3.6 * count + 0.6), squeeze=False, layout="constrained"
    )
    occurring: set[int] = set()
    for i, row in enumerate(axes):
        image, mask = split.read(i, transform.mode), torch.from_numpy(split.mask(i))
        predicted = classify(transform(image)[None], (image.height, image.width))[0]
        occurring |= {*mask.unique().tolist(), *predicted.unique().tolist()}
        shown = {shorten(split.names[i]): None, "mask": mask, "predicted": predicted}
        for axis, (title, indices) in zip(row, shown.items(), strict=True):
            _show(axis, image, indices, split.classes)
            axis.set_title(title, fontsize=10)
    _legend(figure, sorted(occurring), split.classes)
    save(figure, path, _DPI)


def _show(axis: Axes, image: Image.Image, mask: Tensor | None, classes: Sequence[str]) -> None:
    """The image, enlarged where it is small, and the colors of its classes but background."""
    height, width = enlarged_size((image.height, image.width), _MIN_SIZE)
    shown = F.resize(F.pil_to_tensor(image.convert("RGB")), [height, width], antialias=True)
    if mask is not None:
        indices = F.resize(mask[None], [height, width], interpolation=InterpolationMode.NEAREST)[0]
        colors = _colors(indices.unique().tolist(), classes)
        if colors:
            masks = torch.stack([indices == i for i in colors])
            shown = draw_segmentation_masks(shown, masks, alpha=_ALPHA, colors=list(colors.values()))
    axis.imshow(shown.permute(1, 2, 0))
    axis.axis("off")


def _colors(indices: Sequence[int], classes: Sequence[str]) -> dict[int, Color]:
    """Colors by index, of those that get one."""
    palette = class_colors(len(classes))
    colors = {i: palette[i] for i in indices if i != IGNORED and classes[i] != _PLAIN}
    return colors | ({IGNORED: _GRAY} if IGNORED in indices else {})


def _legend(figure: Figure, indices: Sequence[int], classes: Sequence[str]) -> None:
    patches = [
        Patch(
            color="#" + bytes(color).hex(),
            alpha=_ALPHA,
            label="ignored" if i == IGNORED else shorten(classes[i]),
        )
        for i, color in _colors(indices, classes).items()
    ]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)), fontsize=10)
