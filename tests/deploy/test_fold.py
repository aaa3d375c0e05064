"""Folding changes nothing but the work."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune

from atconv.deploy import FoldedConvGLU, fold
from atconv.models.attnet import VARIANTS
from support.helpers import assert_close, randomize, tiny_attnet

IMAGES = (2, 3, 45, 70)


@pytest.mark.parametrize("variant", ["attnet_xxs", "attnet_xs", "attnet_t2"])
def test_outputs_are_the_same_for_every_kind_of_block(variant: str) -> None:
    small = VARIANTS[variant] | {"depths": (2, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": 5}
    model: Any = randomize(timm.create_model(variant, **small)).eval()
    images = torch.randn(IMAGES)
    before = copy.deepcopy(model.state_dict())
    folded: Any = fold(model)
    with torch.no_grad():
        assert_close(folded(images), model(images), 1e-5)
        assert_close(folded.double()(images.double()), model.double()(images.double()), 1e-6)
        assert_close(folded.forward_features(images.double()), model.forward_features(images.double()), 1e-6)
    model.float()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        ("atconv", {"routing": False, "inhibition": False}),
        ("atconv", {"routing": False}),
        ("attention", {"rope": True}),
        ("depthwise", {"kernel_size": 7}),
    ],
)
def test_other_mixers_stay(mixer: str, options: dict[str, Any]) -> None:
    model = tiny_attnet(token_mixer=mixer, mixer_args=options, ls_init_value=0.5)
    images = torch.randn(IMAGES)
    with torch.no_grad():
        assert_close(fold(model)(images), model(images), 1e-5)


def test_channel_mixers_without_convolution_fold_too() -> None:
    model: Any = tiny_attnet(glu_conv=False)
    images = torch.randn(IMAGES)
    with torch.no_grad():
        assert_close(fold(model)(images), model(images), 1e-5)
    assert not any(name.endswith("dwconv.weight") for name in model.state_dict())


def test_projections_without_bias_fold_too() -> None:
    model: Any = tiny_attnet(mixer_args={"bias": False})
    images = torch.randn(IMAGES)
    with torch.no_grad():
        assert_close(fold(model)(images), model(images), 1e-5)


def test_nothing_that_could_be_folded_is_left() -> None:
    folded = fold(tiny_attnet(glu_norm=True, ls_init_value=1e-6))
    kinds = {type(module).__name__ for module in folded.modules()}
    assert not kinds & {"BatchNorm2d", "LayerScale2d", "RmsNorm2d", "ConvGLU"}
    norms = [m for name, m in folded.named_modules() if isinstance(m, nn.LayerNorm) and "head" not in name]
    assert norms
    assert not any(norm.elementwise_affine for norm in norms)
    convolution = folded.stages[0].blocks[0].channel_mixer.proj
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_is_as_near_as_the_model_itself() -> None:
    model: Any = tiny_attnet(glu_norm=True)
    images = torch.randn(IMAGES)
    with torch.no_grad():
        expected = model(images)
        own = (model.bfloat16()(images.bfloat16()).float() - expected).norm()
        model.float()
        folded = (fold(model).bfloat16()(images.bfloat16()).float() - expected).norm()
    assert folded < 2 * own


def test_another_activation_is_rejected() -> None:
    model: Any = tiny_attnet(glu_norm=True).eval()
    model.stages[0].blocks[0].channel_mixer.act = nn.ReLU()
    with pytest.raises(ValueError, match=r"exact GELU, stages.0.blocks.0.channel_mixer has ReLU"):
        fold(model)


def test_altered_layers_are_rejected() -> None:
    model: Any = tiny_attnet()
    model.stages[1].blocks[0].norm2 = nn.Identity()
    with pytest.raises(ValueError, match=r"LayerNorm2d at stages.1.blocks.0.norm2, it is Identity"):
        fold(model)
    model = tiny_attnet()
    model.stem.norm1 = nn.Identity()
    with pytest.raises(ValueError, match=r"BatchNorm2d at stem.norm1, it is Identity"):
        fold(model)


def test_hooks_stay_or_are_rejected_and_pruned_weights_are_taken() -> None:
    model: Any = tiny_attnet()
    images, seen = torch.randn(IMAGES), []
    model.stages[0].blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    prune.l1_unstructured(model.stages[0].blocks[0].token_mixer.value_proj, "weight", 0.5)
    with torch.no_grad():
        expected = model(images)
        assert_close(fold(model)(images), expected, 1e-5)
    assert_close(seen[0], seen[1], 1e-5)
    model.stages[0].blocks[0].token_mixer.value_proj.register_forward_hook(lambda *given: None)
    with pytest.raises(ValueError, match=r"stages.0.blocks.0.token_mixer.value_proj has hooks, and folding"):
        fold(model)


@pytest.mark.parametrize("glu_conv", [True, False])
def test_macs_are_those_of_the_model(glu_conv: bool) -> None:
    model: Any = tiny_attnet(glu_norm=True, glu_conv=glu_conv)
    assert fold(model).macs(64, 96) == model.macs(64, 96)


def test_what_cannot_be_folded_is_rejected() -> None:
    model = tiny_attnet()
    with pytest.raises(TypeError, match="fold takes an AttNet, got ResNet"):
        fold(timm.create_model("resnet18"))
    with pytest.raises(ValueError, match=r"eval mode.*Call model\.eval\(\)"):
        fold(model.train())
    model.eval().stem.norm1.train()
    with pytest.raises(ValueError, match=r"eval mode"):
        fold(model)
    folded = fold(model.eval())
    assert any(isinstance(module, FoldedConvGLU) for module in folded.modules())
    with pytest.raises(ValueError, match="folded already"):
        fold(folded)


@pytest.mark.parametrize("layer", ["gate_proj", "value_proj", "dwconv", "act", "proj"])
@pytest.mark.parametrize("glu_norm", [True, False])
@torch.no_grad()
def test_a_hook_on_every_layer_of_a_folded_channel_mixer_is_called(layer: str, glu_norm: bool) -> None:
    mixer: Any = fold(tiny_attnet(glu_norm=glu_norm)).stages[1].blocks[0].channel_mixer.double()
    x, outputs = torch.randn(2, 16, 6, 5, dtype=torch.float64), []
    expected = mixer(x)
    handle = getattr(mixer, layer).register_forward_hook(lambda _, args, output: outputs.append(output))
    assert_close(mixer(x), expected, 1e-12)
    assert len(outputs) == 1
    handle.remove()
    getattr(mixer, layer).register_forward_hook(lambda _, args, output: output + 1)
    assert not torch.allclose(mixer(x), expected)
