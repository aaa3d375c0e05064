"""Detectors: any timm backbone in torchvision's Faster R-CNN, Mask R-CNN and RetinaNet, through a pyramid."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from atconv.models.backbone import Pyramid, check_any_size, check_counts, make_features, pyramid_strides
from atconv.models.normalization import normalization

__all__ = ["ARCHITECTURES", "DetectorArchitecture", "check_sizes", "detector"]

DetectorArchitecture = Literal["faster_rcnn", "mask_rcnn", "retinanet"]
ARCHITECTURES: tuple[DetectorArchitecture, ...] = ("faster_rcnn", "mask_rcnn", "retinanet")

_RATIOS = (0.5, 1.0, 2.0)
_BOX_CELLS, _MASK_CELLS = 7, 14  # sizes that regions of the maps are pooled to, as in torchvision
_OWN = (
    "anchor_generator", "rpn_anchor_generator", "image_mean", "image_std", "size_divisible", "box_roi_pool",
    "box_head", "box_predictor", "mask_roi_pool", "mask_head", "mask_predictor",
)  # fmt: skip
_OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # RetinaNet's three anchors to an octave


def detector(
    backbone: str = "attnet_t2",
    num_classes: int = 80,
    architecture: DetectorArchitecture = "faster_rcnn",
    *,
    in_chans: int = 3,
    backbone_args: Mapping[str, Any] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    levels: int | None = None,
    channels: int = 256,
    anchor_scale: float | None = None,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> FasterRCNN | MaskRCNN | RetinaNet:
    """A detector of torchvision on a backbone of timm.

    It takes and gives what torchvision's do: a list of images, C H W in 0…1 and of any sizes, and in training
    a list of {"boxes": N 4 as left, top, right, bottom in pixels, "labels": N, and "masks": N H W for Mask
    R-CNN}. It normalizes and resizes images itself. Anchors follow the strides of the backbone, whatever its
    stem.

    >>> model = atconv.models.detector("attnet_t2", num_classes=80).eval()
    >>> model([torch.rand(3, 480, 640)])[0]["boxes"]          # N × 4

    Args:
        backbone: model by timm's name, one that has feature maps (`features_only`).
        num_classes: kinds of objects, numbered from 1; 0 is background and is not counted.
        architecture: faster_rcnn, mask_rcnn or retinanet.
        in_chans: channels of the images.
        backbone_args: additional arguments of the backbone, such as {"stem_stride": 2}.
        state_dict: weights of a classifier, which the backbone starts from.
        levels: how many of its maps, counted from the coarsest; default: 4, and 3 for RetinaNet.
        channels: of the pyramid and the heads.
        anchor_scale: size of an anchor by its map's stride; default: 8, and 4 for RetinaNet.
        min_size: the shorter side of every image is resized to it; of several, each training image takes one.
        max_size: but the longer side is never longer than this.
        mean, std: of each channel; default: ImageNet's, or 0.5 for images that are not in color.
        options: additional arguments of torchvision's class, such as box_detections_per_img.

    Raises:
        ValueError: an argument is out of range, or the backbone has no such maps.
        TypeError: torchvision's class has no such option.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    check_counts(num_classes=num_classes, channels=channels, in_chans=in_chans)
    check_sizes(min_size, max_size)
    _check_options(architecture, options)
    one_stage = architecture == "retinanet"
    levels = (3 if one_stage else 4) if levels is None else levels
    anchor_scale = (4.0 if one_stage else 8.0) if anchor_scale is None else anchor_scale
    if not 0 < anchor_scale < math.inf:
        raise ValueError(f"anchor_scale must be positive and finite, got {anchor_scale}")
    body = make_features(backbone, in_chans, levels, backbone_args or {}, state_dict)
    strides = pyramid_strides(body, backbone)
    check_any_size(body, backbone, in_chans)
    mean, std = normalization(in_chans, mean, std)
    arguments = options | {
        "min_size": min_size if isinstance(min_size, int) else tuple(min_size),
        "max_size": max_size,
        "image_mean": list(mean),
        "image_std": list(std),
        "size_divisible": max(32, strides[-1]),
    }
    extra: ExtraFPNBlock = LastLevelP6P7(channels, channels) if one_stage else LastLevelMaxPool()
    pyramid = Pyramid(body, channels, extra)
    anchors = _anchors(strides, one_stage, anchor_scale)
    model: FasterRCNN | MaskRCNN | RetinaNet
    if one_stage:
        model = _RetinaNet(pyramid, num_classes + 1, anchor_generator=anchors, **arguments)
    else:
        masks = architecture == "mask_rcnn"
        heads = _box_head(channels, num_classes, strides)
        heads |= _mask_head(channels, num_classes, strides) if masks else {}
        kind = MaskRCNN if masks else FasterRCNN
        model = kind(pyramid, rpn_anchor_generator=anchors, **heads, **arguments)
    resize = model.transform
    model.transform = _Transform(
        resize.min_size, resize.max_size, resize.image_mean, resize.image_std, resize.size_divisible,
        resize.fixed_size,
    )  # fmt: skip
    return model


def _anchors(strides: Sequence[int], one_stage: bool, scale: float) -> AnchorGenerator:
    """Over the backbone's maps and the coarser ones that the pyramid adds: two for RetinaNet, or one."""
    last = strides[-1]
    coarser = [2 * last, 4 * last] if one_stage else [2 * last]
    sizes = tuple(
        tuple(scale * stride * factor for factor in (_OCTAVE if one_stage else (1.0,)))
        for stride in [*strides, *coarser]
    )
    return AnchorGenerator(sizes, (_RATIOS,) * len(sizes))


def check_sizes(min_size: Any, max_size: Any) -> None:
    """Raise ValueError unless they are what `detector` takes."""
    sizes = [min_size] if isinstance(min_size, int) else list(min_size)
    integers = all(type(size) is int for size in (*sizes, max_size))
    if not integers or not sizes or min(sizes) < 1 or max(sizes) > max_size:
        raise ValueError(
            f"min_size must be one size in pixels or several, 1 … max_size, got {min_size} and {max_size}"
        )


def _check_options(architecture: DetectorArchitecture, options: Mapping[str, Any]) -> None:
    """torchvision ignores names that it does not know."""
    kind = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN, "retinanet": RetinaNet}[architecture]
    parameters = inspect.signature(kind).parameters
    unknown = set(options) - set(parameters)
    if unknown:
        raise TypeError(f"torchvision's {kind.__name__} has no option {', '.join(sorted(unknown))}")
    ours = [name for name in _OWN if name in options]
    if ours:
        raise TypeError(
            f"backbone, channels, anchor_scale, mean and std set {', '.join(ours)}: leave out, or build "
            f"torchvision's {kind.__name__} on atconv.models.backbone.Pyramid"
        )
    for name, value in options.items():
        default = parameters[name].default
        if isinstance(default, (int, float)):
            kinds = (int,) if isinstance(default, int) else (int, float)
            fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
            words = f"a {'whole number' if len(kinds) == 1 else 'number'}, such as {default}"
        elif name == "bbox_reg_weights":
            fits = value is None or (isinstance(value, (list, tuple)) and len(value) == 4)
            words = "four numbers"
        else:
            fits = value is None or isinstance(value, nn.Module)
            words = "a module, which Python alone can give"
        if not fits:
            raise TypeError(f"{name} of torchvision's {kind.__name__} must be {words}, got {value!r}")


class _Transform(GeneralizedRCNNTransform):
    """torchvision's, for images of any shape: neither side becomes shorter than a pixel. Sizes are computed
    in whole numbers: torchvision's become another pixel in a file, which rounds otherwise."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, Any]:
        short_side = self.torch_choice(list(self.min_size)) if self.training else self.min_size[-1]
        shape = torch._shape_as_tensor(image)[-2:]  # a value of the graph, where it is traced
        sides = torch.minimum(short_side * shape // shape.min(), self.max_size * shape // shape.max())
        size: Any = sides.clamp(min=1).unbind()
        if not torch.jit.is_tracing():
            size = [int(side) for side in size]
        if target is not None:
            target = {**target, "boxes": resize_boxes(target["boxes"], list(image.shape[-2:]), list(size))}
            if "masks" in target:
                target["masks"] = F.interpolate(target["masks"][:, None].float(), size)[:, 0].byte()
        return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0], target


class _RetinaNet(RetinaNet):
    """torchvision has an output for label 0, which is never trained but may be detected; here it is not."""

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        masked = [logits.clone() for logits in head_outputs["cls_logits"]]
        for logits in masked:
            logits[..., 0] = -torch.inf
        return super().postprocess_detections({**head_outputs, "cls_logits": masked}, anchors, image_shapes)


def _pool(cells: int, strides: Sequence[int]) -> MultiScaleRoIAlign:
    """torchvision's with the strides set. By default it infers them once, from the first batch, as sizes of
    padded maps over sizes of images without padding, which is wrong for small images."""
    pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], cells, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    finest, coarsest = (int(math.log2(stride)) for stride in (strides[0], strides[-1]))
    pool.map_levels = initLevelMapper(finest, coarsest, pool.canonical_scale, pool.canonical_level)
    return pool


def _box_head(channels: int, num_classes: int, strides: Sequence[int]) -> dict[str, nn.Module]:
    """torchvision's, as wide as the pyramid: with 256 channels it has torchvision's 1024 features."""
    return {
        "box_roi_pool": _pool(_BOX_CELLS, strides),
        "box_head": TwoMLPHead(channels * _BOX_CELLS**2, 4 * channels),
        "box_predictor": FastRCNNPredictor(4 * channels, num_classes + 1),
    }


def _mask_head(channels: int, num_classes: int, strides: Sequence[int]) -> dict[str, nn.Module]:
    return {
        "mask_roi_pool": _pool(_MASK_CELLS, strides),
        "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
    }
