"""Pictures of segmentations: colors over the picture, and a legend; readable at 100 %."""

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
from atconv.tasks.common.drawing import colors_of, shown_size
from atconv.tasks.segmentation.model import OpenSegmenter

__all__ = ["draw_found", "draw_side"]

_SHOWN = 4
_SIDE = 480  # pixels of a picture's longer side, at least
_DPI = 110
_PLAIN = "background"  # a class of this name is left as it is
_LEFT_OUT = (128, 128, 128)  # gray, for pixels that no class is given to


def draw_found(image: Image.Image, found: Tensor, classes: Sequence[str], path: Path) -> None:
    """A picture beside its classes, with a legend of those that occur.

    Args:
        found: H W of class indices.
        path: PNG to write.
    """
    height, width = shown_size((image.height, image.width), _SIDE)
    figure, axes = plt.subplots(
        1, 2, figsize=(2 * width / _DPI + 0.3, height / _DPI + 0.9), layout="constrained"
    )
    for axis, mask in zip(axes, (None, found), strict=True):
        _show(axis, _overlaid(image, mask, classes))
    _legend(figure, found.unique().tolist(), classes)
    save(figure, path, _DPI)


@torch.inference_mode()
def draw_side(opened: OpenSegmenter, side: MaskSplit, path: Path) -> None:
    """The first pictures of a side: as they are, as their masks say, as they were segmented."""
    count = min(_SHOWN, len(side))
    figure, axes = plt.subplots(
        count, 3, figsize=(13.8, 3.6 * count + 0.6), squeeze=False, layout="constrained"
    )
    occurring: set[int] = set()
    for i, row in enumerate(axes):
        image = side.read(i, opened.transform.mode)
        mask = torch.from_numpy(side.mask(i))
        found = opened.classify(opened.transform(image)[None], (image.height, image.width))[0]
        occurring |= {*mask.unique().tolist(), *found.unique().tolist()}
        shown = {shorten(side.names[i]): None, "mask": mask, "found": found}
        for axis, (title, what) in zip(row, shown.items(), strict=True):
            _show(axis, _overlaid(image, what, opened.classes))
            axis.set_title(title, fontsize=10)
    _legend(figure, sorted(occurring), opened.classes)
    save(figure, path, _DPI)


def _overlaid(image: Image.Image, mask: Tensor | None, classes: Sequence[str]) -> Tensor:
    """3 H W uint8: the picture, enlarged where it is small, and the colors of its classes but background."""
    height, width = shown_size((image.height, image.width), _SIDE)
    large = F.resize(F.pil_to_tensor(image.convert("RGB")), [height, width], antialias=True)
    if mask is None:
        return large
    indices = F.resize(mask[None], [height, width], interpolation=InterpolationMode.NEAREST)[0]
    shown = _colors(indices.unique().tolist(), classes)
    if not shown:
        return large
    own = torch.stack([indices == i for i in shown])
    return draw_segmentation_masks(large, own, alpha=0.55, colors=list(shown.values()))


def _colors(indices: Sequence[int], classes: Sequence[str]) -> dict[int, tuple[int, int, int]]:
    """Of those that are drawn, by index."""
    colors = colors_of(len(classes))
    named = {i: colors[i] for i in indices if i != IGNORED and classes[i] != _PLAIN}
    return named | ({IGNORED: _LEFT_OUT} if IGNORED in indices else {})


def _show(axis: Axes, picture: Tensor) -> None:
    axis.imshow(picture.permute(1, 2, 0))
    axis.axis("off")


def _legend(figure: Figure, indices: Sequence[int], classes: Sequence[str]) -> None:
    shown = _colors(indices, classes)
    if not shown:
        return
    patches = [
        Patch(color="#" + bytes(color).hex(), label="left out" if i == IGNORED else shorten(classes[i]))
        for i, color in shown.items()
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)), fontsize=10)
