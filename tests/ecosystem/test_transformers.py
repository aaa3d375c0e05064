"""A run in transformers, and transformers' detectors and segmenters on an AttNet backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import TimmBackboneConfig

import atconv
from support.helpers import assert_close, randomize
from support.tiny import trained_run


@pytest.fixture(scope="module")
def run() -> Path:
    return trained_run()


@torch.no_grad()
def test_a_run_opens_as_an_image_classifier(run: Path) -> None:
    predictor: Any = atconv.load(run)
    model = transformers.AutoModelForImageClassification.from_pretrained(run).eval()
    images = torch.randn(2, 1, 8, 8)
    assert_close(model(images).logits, predictor.model(images), 1e-6)
    assert list(model.config.id2label.values()) == predictor.classes


@torch.no_grad()
def test_a_run_opens_without_its_head(run: Path) -> None:
    predictor: Any = atconv.load(run)
    model = transformers.AutoModel.from_pretrained(run).eval()
    images = torch.randn(2, 1, 8, 8)
    assert_close(model(images).last_hidden_state, predictor.model.forward_features(images), 1e-6)


@torch.no_grad()
def test_a_run_saved_by_transformers_keeps_its_weights(run: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForImageClassification.from_pretrained(run).eval()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(images).logits, model(images).logits)


def backbone(*stages: int) -> TimmBackboneConfig:
    return TimmBackboneConfig(backbone="attnet_xxs", use_pretrained_backbone=False, out_indices=list(stages))


ENCODER_AND_DECODER = dict(
    d_model=32, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
    decoder_ffn_dim=16, num_queries=4,
)  # fmt: skip


def detr() -> Any:
    config = transformers.DetrConfig(
        backbone_config=backbone(3), use_timm_backbone=False, encoder_layers=1, **ENCODER_AND_DECODER
    )
    return transformers.DetrForObjectDetection(config)


def rt_detr() -> Any:
    config = transformers.RTDetrConfig(
        backbone_config=backbone(1, 2, 3), encoder_in_channels=[64, 128, 256], encoder_hidden_dim=32,
        decoder_in_channels=[32, 32, 32], feat_strides=[8, 16, 32], num_denoising=0, **ENCODER_AND_DECODER,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config)


def upernet() -> Any:
    config = transformers.UperNetConfig(
        backbone_config=backbone(0, 1, 2, 3), hidden_size=16, auxiliary_in_channels=128, auxiliary_channels=8
    )
    return transformers.UperNetForSemanticSegmentation(config)


def maskformer() -> Any:
    decoder = transformers.DetrConfig(encoder_layers=1, **ENCODER_AND_DECODER)
    config = transformers.MaskFormerConfig(
        backbone_config=backbone(0, 1, 2, 3),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


@pytest.mark.parametrize("make", [detr, rt_detr, upernet, maskformer])
@torch.no_grad()
def test_dense_models_keep_all_weights_when_saved_and_opened(make: Callable[[], Any], tmp_path: Path) -> None:
    saved: Any = randomize(make()).eval()
    assert any(name.endswith("token_mixer.proj.weight") for name in saved.state_dict())
    saved.save_pretrained(tmp_path)
    opened, info = type(saved).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    ours, its = saved.state_dict(), opened.eval().state_dict()
    assert list(its) == list(ours)
    assert all(torch.equal(its[name], ours[name]) for name in ours)
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(first_tensor(opened(images)), first_tensor(saved(images)))


def first_tensor(output: Any) -> Tensor:
    return next(value for value in output.values() if isinstance(value, Tensor))
