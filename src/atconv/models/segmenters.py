"""Segmenters of segmentation-models-pytorch on a backbone of timm, or a clear error where they do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from atconv.extras import name_missing_extra
from atconv.models.backbone import check_any_size, check_counts, feature_strides, load_classifier_weights

__all__ = ["ARCHITECTURES", "DIVISOR", "SegmenterArchitecture", "segmenter"]

SegmenterArchitecture = Literal["unet", "fpn", "upernet"]
ARCHITECTURES: tuple[SegmenterArchitecture, ...] = ("unet", "fpn", "upernet")
DIVISOR = 32
"""height and width of the input must be multiples of it"""

_STRIDES = ([4, 8, 16, 32], [2, 4, 8, 16, 32], [1, 2, 4, 8, 16, 32])  # strides that smp's probe knows


@name_missing_extra()
def segmenter(
    backbone: str = "attnet_t2",
    num_classes: int = 150,
    architecture: SegmenterArchitecture = "unet",
    *,
    in_chans: int = 3,
    backbone_args: Mapping[str, Any] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> nn.Module:
    """What `smp.create_model(architecture, "tu-BACKBONE", encoder_weights=None, …)` gives, checked.

    smp reads the strides of a backbone without its arguments: one whose strides these change gives maps of a
    wrong size and no error. Here it raises.

    >>> model = atconv.models.segmenter("attnet_t2", num_classes=150).eval()
    >>> model(torch.rand(1, 3, 512, 512))                              # 1 × 150 × 512 × 512

    Args:
        backbone: model by timm's name, one that has feature maps (`features_only`).
        num_classes: classes of a pixel, background among them.
        architecture: unet, fpn or upernet.
        in_chans: channels of the images.
        backbone_args: additional arguments of the backbone.
        state_dict: weights of a classifier, which the backbone starts from.
        options: additional arguments of smp's class, such as decoder_channels.

    Returns:
        a model of smp: B in_chans H W → B num_classes H W of logits; H and W are multiples of 32.

    Raises:
        ValueError: an argument is out of range, or the backbone has no such maps.
    """
    import segmentation_models_pytorch as smp  # an extra, and takes seconds

    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    check_counts(num_classes=num_classes, in_chans=in_chans)
    for name in ("activation", "aux_params"):
        if options.get(name) is not None:
            raise ValueError(f"{name} is not supported: a segmenter gives logits of pixels and nothing else")
    arguments = dict(backbone_args or {})
    strides = feature_strides(backbone, arguments)
    if strides not in _STRIDES:
        raise ValueError(
            f"the feature maps of {backbone} with {arguments} have strides {strides}: segmentation needs "
            "4, 8, 16, 32, or those and finer ones. Leave stem_stride at 4 (a run that weights come from "
            "brings its own); larger images give finer maps"
        )
    try:
        model = smp.create_model(
            architecture,
            f"tu-{backbone}",
            encoder_weights=None,
            in_channels=in_chans,
            classes=num_classes,
            **options,
            **arguments,
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{architecture} does not take {options}: {error}") from error
    check_any_size(model.encoder.model, backbone, in_chans)
    if state_dict is not None:
        load_classifier_weights(model.encoder.model, backbone, state_dict)
    return model
