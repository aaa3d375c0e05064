"""AttNet in the segmenters of other libraries, with nothing of ours between."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation

from atconv.models.segmenters import segmenter
from atconv.tasks.segmentation.data import SegmentationTransform, resized
from support.helpers import randomize
from support.tiny_dense import BACKBONE

NARROW: dict[str, dict[str, Any]] = {
    "unet": {"decoder_channels": [16, 16, 8, 8, 8]},
    "fpn": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "upernet": {"decoder_channels": 16},
}


@pytest.mark.parametrize("architecture", NARROW)
@pytest.mark.parametrize("size", [(32, 96), (96, 160)])  # odd multiples of 32
def test_smp_takes_attnet_as_it_is(architecture: str, size: tuple[int, int]) -> None:
    model = smp.create_model(
        architecture, "tu-attnet_xxs", encoder_weights=None, classes=5, **NARROW[architecture], **BACKBONE
    )
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5, *size)
    logits.square().mean().backward()
    used = model.encoder.model.named_parameters()
    assert [name for name, p in used if p.grad is None or not p.grad.any()] == []


OTHERS = ["unetplusplus", "linknet", "manet", "pspnet", "segformer", "pan"]


@pytest.mark.parametrize("architecture", OTHERS)
@torch.no_grad()
def test_smps_other_decoders_take_attnet(architecture: str) -> None:
    options: dict[str, Any] = {"encoder_output_stride": 32} if architecture == "pan" else {}
    model = smp.create_model(
        architecture, "tu-attnet_xxs", encoder_weights=None, classes=5, **BACKBONE, **options
    )
    assert model.eval()(torch.randn(1, 3, 256, 288)).shape == (1, 5, 256, 288)


@pytest.mark.parametrize(("decoder", "stride"), [("pan", 16), ("deeplabv3", 8), ("deeplabv3plus", 16)])
def test_decoders_that_want_dilated_stages_name_those_that_do_not(decoder: str, stride: int) -> None:
    with pytest.raises(ValueError, match=r"output_stride is 32.*UPerNet take it, and PAN with"):
        smp.create_model(
            decoder, "tu-attnet_xxs", encoder_weights=None, encoder_output_stride=stride, **BACKBONE
        )


def test_transformers_upernet_takes_attnet_as_it_is() -> None:
    backbone = TimmBackboneConfig(
        backbone="attnet_xxs", use_pretrained_backbone=False, out_indices=[0, 1, 2, 3], features_only=True
    )
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        auxiliary_in_channels=128,
        auxiliary_channels=8,
        num_labels=4,
    )
    model = UperNetForSemanticSegmentation(config)
    out = model(torch.randn(2, 3, 64, 97), labels=torch.randint(0, 4, (2, 64, 97)))
    assert out.logits.shape == (2, 4, 64, 97)
    out.loss.backward()
    unused = [n for n, p in model.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


@pytest.mark.parametrize("architecture", NARROW)
def test_ours_is_smps_with_the_weights_of_a_classifier(architecture: str) -> None:
    classifier = randomize(timm.create_model("attnet_xxs", in_chans=1, num_classes=3, **BACKBONE)).eval()
    model = segmenter(
        "attnet_xxs", 5, architecture, in_chans=1, backbone_args=BACKBONE, state_dict=classifier.state_dict(),  # type: ignore[arg-type]
        **NARROW[architecture],
    ).eval()  # fmt: skip
    x = torch.randn(1, 1, 64, 96)
    maps = classifier.forward_intermediates(x, intermediates_only=True)
    for ours, theirs in zip(model.encoder(x)[2:], maps, strict=True):
        assert torch.equal(ours, theirs)
    assert model(x).shape == (1, 5, 64, 96)


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_strides_that_smp_would_read_wrongly_raise(stem_stride: int) -> None:
    arguments = {**BACKBONE, "stem_stride": stem_stride}
    wrong = smp.create_model("fpn", "tu-attnet_xxs", encoder_weights=None, **NARROW["fpn"], **arguments)
    assert wrong(torch.randn(1, 3, 64, 64)).shape[2:] != (64, 64)  # and no error
    with pytest.raises(ValueError, match="Leave stem_stride at 4"):
        segmenter("attnet_xxs", 5, "fpn", backbone_args=arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(backbone="attnet_t9"), "timm knows no model 'attnet_t9'"),
        (dict(backbone="vit_tiny_patch16_224"), "strides .16, 16"),
        (dict(num_classes=0), "num_classes, in_chans must be whole numbers, at least 1, got 0, 3"),
        (dict(architecture="pan"), "architecture must be one of unet, fpn, upernet"),
        (dict(backbone_args={"no_such": 1}), "no_such"),
        (dict(activation="softmax2d"), "activation is not supported: a segmenter gives logits"),
        (dict(aux_params={"classes": 2}), "aux_params is not supported"),
    ],
    ids=lambda v: str(next(iter(v))) if isinstance(v, dict) else "",
)
def test_bad_arguments_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter(**{"backbone": "attnet_xxs", "num_classes": 2, **arguments})


@given(height=st.integers(1, 60), width=st.integers(1, 60))
@settings(deadline=None, max_examples=30)
def test_the_transform_can_be_undone_for_any_shape(height: int, width: int) -> None:
    transform = SegmentationTransform(1, 32, None, None)
    x = transform(Image.new("L", (20 * width, height)))
    assert x.shape[1] % 32 == x.shape[2] % 32 == 0
    assert max(x.shape[1:]) <= 32 * 10 + 32
    below = resized((height, 20 * width), transform.short_side)[0]
    assert (x[:, below:] == 0).all()
    assert transform.undo(x[None], (height, 20 * width)).shape[2:] == (height, 20 * width)
