"""Detectors: what torchvision's take and give, on backbones of any stem, with anchors that follow it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import atconv
from atconv.models import detector
from atconv.models.backbone import make_features
from support.helpers import randomize
from support.tiny_dense import BACKBONE

ARCHITECTURES = ("faster_rcnn", "mask_rcnn", "retinanet")
SMALL: dict[str, Any] = {"channels": 8, "min_size": 48, "max_size": 96}


def tiny(
    architecture: str = "faster_rcnn", backbone_args: dict[str, Any] | None = None, **options: Any
) -> Any:
    arguments = {**BACKBONE, **(backbone_args or {})}
    return detector("attnet_xxs", 3, architecture, backbone_args=arguments, **{**SMALL, **options})


def target(height: int, width: int) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([[2.0, 3.0, width / 2, height - 2]]),
        "labels": torch.tensor([3]),
        "masks": torch.ones(1, height, width, dtype=torch.uint8),
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_gradients_reach_all_of_the_backbone(architecture: str, stem_stride: int) -> None:
    model = tiny(architecture, {"stem_stride": stem_stride})
    images = [torch.rand(3, 51, 70), torch.rand(3, 70, 33)]
    losses = model(images, [target(51, 70), target(70, 33)])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [
        name for name, p in model.backbone.body.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_detections_lie_in_their_own_image(architecture: str) -> None:
    scored = {"score_thresh" if architecture == "retinanet" else "box_score_thresh": 0.0}
    model = tiny(architecture, in_chans=1, **scored).eval()
    sizes = [(33, 95), (70, 41)]
    with torch.inference_mode():
        outputs = model([torch.rand(1, *size) for size in sizes])
    for detections, (height, width) in zip(outputs, sizes, strict=True):
        assert len(detections["boxes"]) > 0
        assert detections["boxes"].min() >= 0
        assert (detections["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert detections["labels"].min() >= 1
        assert detections["labels"].max() <= 3
        if architecture == "mask_rcnn":
            assert detections["masks"].shape[1:] == (1, height, width)


@settings(deadline=None, max_examples=12)
@given(stem=st.sampled_from([1, 2, 4]), levels=st.integers(1, 4), scale=st.sampled_from([2.0, 8.0]))
def test_anchors_and_pooling_follow_the_strides(stem: int, levels: int, scale: float) -> None:
    model = tiny(backbone_args={"stem_stride": stem}, levels=levels, anchor_scale=scale).eval()
    strides = [stem * 2**i for i in range(4 - levels, 4)]
    maps = model.backbone(torch.rand(1, 3, 64, 96))
    assert [64 // feature_map.shape[2] for feature_map in maps.values()][:levels] == strides
    expected = [scale * stride for stride in [*strides, 2 * strides[-1]]]
    assert [size for (size,) in model.rpn.anchor_generator.sizes] == expected
    with torch.inference_mode():
        model([torch.rand(3, 67, 48)])  # padded to 96 × 64, from which torchvision would infer other strides
    assert model.roi_heads.box_roi_pool.scales == [1 / stride for stride in strides]


def test_features_are_those_that_timm_gives() -> None:
    classifier = randomize(timm.create_model("attnet_xxs", num_classes=7, **BACKBONE)).eval()
    model = tiny(state_dict=classifier.state_dict()).eval()
    x = torch.randn(2, 3, 49, 70)
    own = model.backbone.body(x)
    features = timm.create_model("attnet_xxs", features_only=True, **BACKBONE)
    assert [feature_map.shape[1] for feature_map in own] == features.feature_info.channels()
    for ours, theirs in zip(own, classifier.forward_intermediates(x, intermediates_only=True), strict=True):
        assert torch.equal(ours, theirs)


def test_a_trace_resizes_as_the_model_does() -> None:
    resize = tiny(min_size=48, max_size=64).eval().transform
    traced = torch.jit.trace(lambda image: resize.resize(image)[0], torch.rand(3, 48, 60))
    for height, width, expected in (
        (53, 97, (34, 64)),
        (97, 53, (64, 34)),
        (30, 30, (48, 48)),
        (1, 99, (1, 64)),
    ):
        image = torch.rand(3, height, width)
        ours, _ = resize.resize(image)
        assert ours.shape[1:] == expected
        torch.testing.assert_close(traced(image), ours)


def test_images_are_normalized_once() -> None:
    model = tiny(in_chans=1, mean=[0.25], std=[0.5], min_size=64, max_size=64)
    seen, _ = model.transform([torch.full((1, 64, 64), 0.75)])
    assert seen.tensors.unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet10t", {}),
        ("convnext_atto", {}),
        ("dla34", {}),  # has one map more than timm gives by default
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 4,
             "img_size": 64, "strict_img_size": False},
        ),
    ],
)  # fmt: skip
def test_other_backbones_of_timm_fit(name: str, arguments: dict[str, Any]) -> None:
    model = detector(name, 2, backbone_args=arguments, **SMALL)
    strides = model.backbone.body.feature_info.reduction()
    maps = model.backbone(torch.rand(1, 3, 64, 64))
    assert [feature_map.shape[1:] for feature_map in maps.values()][:4] == [
        (SMALL["channels"], 64 // stride, 64 // stride) for stride in strides
    ]
    losses = model([torch.rand(3, 64, 64)], [target(64, 64) | {"labels": torch.tensor([2])}])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    used = model.backbone.body.named_parameters()
    assert [name for name, p in used if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(backbone="attnet_t9"), "timm knows no model 'attnet_t9'; AttNet's are attnet_s"),
        (
            dict(backbone="vit_tiny_patch16_224", levels=3),
            r"strides \[16, 16, 16\]: a pyramid needs powers of two",
        ),
        (
            dict(backbone="maxvit_nano_rw_256"),
            "height .* must be divisible by window .* AttNet, ResNet, Conv",
        ),
        (dict(architecture="yolo"), "architecture must be one of faster_rcnn"),
        (dict(min_size=0), "min_size must be one size in pixels or several, 1 … max_size, got 0"),
        (dict(min_size=[]), "min_size must be one size"),
        (dict(min_size=[64, 200], max_size=100), r"got \[64, 200\] and 100"),
        (dict(anchor_scale=float("nan")), "anchor_scale must be positive and finite"),
        (dict(levels=5), "4 feature maps: levels must lie in 1 … 4, got 5"),
        (
            dict(num_classes=0),
            "num_classes, channels, in_chans must be whole numbers, at least 1, got 0, 256, 3",
        ),
        (dict(num_classes="3"), "must be whole numbers, at least 1, got '3'"),
        (dict(channels=3.5), "must be whole numbers"),
        (dict(mean=[0.1, 0.2]), "mean must have one value"),
        (dict(backbone_args={"stem_stride": 3}), "stem_stride"),
        (dict(backbone_args={"no_such": 3}), "no_such"),
    ],
    ids=lambda v: str(next(iter(v))) if isinstance(v, dict) else "",
)
def test_bad_arguments_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector(**{"backbone": "attnet_xxs", "num_classes": 2, **arguments})


def test_an_option_that_torchvision_would_ignore_raises() -> None:
    with pytest.raises(TypeError, match="mean and std set image_mean, box_head: leave out"):
        tiny(image_mean=[0.5] * 3, box_head=None)
    with pytest.raises(TypeError, match="torchvision's FasterRCNN has no option no_such"):
        tiny(no_such=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_score_thresh": "x"}, "box_score_thresh of .* must be a number, such as 0.05, got 'x'"),
        ({"box_score_thresh": math.nan}, "box_score_thresh of .* must be a number"),
        (
            {"rpn_batch_size_per_image": 2.5},
            "rpn_batch_size_per_image of .* must be a whole number, such as 256",
        ),
        ({"bbox_reg_weights": 3}, "bbox_reg_weights of .* must be four numbers"),
        ({"rpn_head": 3}, "rpn_head of .* must be a module"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(*value),
)
def test_an_option_of_another_kind_than_torchvisions_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tiny(**options)


def test_weights_of_another_model_raise() -> None:
    with pytest.raises(TypeError, match=r"weights are tensors by name, .* got 'x\.pth'"):
        tiny(state_dict="x.pth")
    other = timm.create_model("attnet_xxs", **{**BACKBONE, "dims": [8, 8, 16, 24]}).state_dict()
    with pytest.raises(ValueError, match="the weights do not fit attnet_xxs"):
        tiny(state_dict=other)


def test_weights_that_are_not_the_backbones_raise() -> None:
    right = timm.create_model("attnet_xxs", **BACKBONE).state_dict()
    for wrong in (
        {f"module.{name}": value for name, value in right.items()},
        timm.create_model("resnet18").state_dict(),
        {"state_dict": right},
        dict(list(right.items())[:20]),
    ):
        with pytest.raises(ValueError, match=r"not fit attnet_xxs: \d+ of \d+ parameters of attnet_xxs are"):
            tiny(state_dict=wrong)
    some = {name: value for name, value in right.items() if not name.startswith("stages.3")}
    with pytest.warns(UserWarning, match=r"attnet_xxs are not among the weights and are newly initialized"):
        tiny(state_dict=some)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("repvit_m0_9", {}),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False}),
        ("efficientnet_b0", {"feature_location": "expansion"}),
    ],
)
def test_weights_of_other_backbones_and_without_a_head_are_loaded(
    name: str, arguments: dict[str, Any]
) -> None:
    state = timm.create_model(name, num_classes=0).state_dict()
    state = {key: value.bfloat16() for key, value in state.items() if "num_batches" not in key}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = make_features(name, 3, 2, arguments, state)
    own = {key: value for key, value in features.state_dict().items() if key in state}
    assert own
    assert all(torch.equal(value, state[key].float()) for key, value in own.items())


def test_the_package_exports_it() -> None:
    assert atconv.models.detector is detector


@pytest.mark.parametrize("size", [(3, 900), (900, 2), (1, 400)])
@pytest.mark.parametrize("architecture", ["mask_rcnn", "retinanet"])
def test_images_of_any_shape_are_taken(architecture: Any, size: tuple[int, int]) -> None:
    model = tiny(architecture)
    height, width = size
    images = [torch.rand(3, height, width), torch.rand(3, 40, 60)]
    boxes = [[0.0, 0.0, width / 2, height / 1.0]], [[2.0, 3.0, 30.0, 30.0]]
    targets = [
        {"boxes": torch.tensor(b), "labels": torch.tensor([1]), "masks": torch.ones(1, *i.shape[1:]).byte()}
        for b, i in zip(boxes, images, strict=True)
    ]
    assert all(loss.isfinite() for loss in model.train()(images, targets).values())
    with torch.no_grad():
        detected = model.eval()(images)[0]["boxes"]
    assert detected.isfinite().all()
    assert (detected[:, 2] <= width).all()
    assert (detected[:, 3] <= height).all()


def test_a_detector_takes_a_backbone_of_window_attention() -> None:
    model = tiny(backbone_args={"token_mixer": "window_attention"}).eval()
    assert len(model([torch.rand(3, 51, 70)])) == 1
