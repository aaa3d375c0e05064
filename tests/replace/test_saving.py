"""What was replaced is saved by timm, transformers and diffusers, and in a plain state dict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from atconv import replace_attention
from atconv.replace import apply, describe, from_pretrained
from replace.test_libraries import KINDS, dit, pixart, sd3, transformer, unet
from replace.test_replace import VISION, maxvit, swin, vit
from support.helpers import randomize


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(opened: nn.Module, saved: nn.Module) -> None:
    """Class, weights and what was replaced; a kernel size that is not the default too."""
    assert type(opened) is type(saved)
    assert describe(opened) == describe(saved) != {}
    ours, its = weights(opened), weights(saved)
    assert list(ours) == list(its)
    assert all(torch.equal(ours[name], its[name]) for name in ours)


@pytest.mark.parametrize("name", VISION)
@torch.no_grad()
def test_a_plain_state_dict(name: str, tmp_path: Path) -> None:
    make, size, _ = VISION[name]
    saved, images = randomize(make()).eval(), torch.randn(2, 3, *size)
    replace_attention(saved, kernel_size=5)
    safetensors.torch.save_model(saved, str(tmp_path / "model.safetensors"))
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for description in (describe(state), json.loads(json.dumps(describe(saved)))):
        opened = make().eval()
        apply(opened, description)
        opened.load_state_dict(state)
        assert_same(opened, saved)
        assert torch.equal(opened(images), saved(images))


@pytest.mark.parametrize("make", [vit, swin, maxvit])
@pytest.mark.parametrize("safe", [False, True])
@torch.no_grad()
def test_timm(make: Any, safe: bool, tmp_path: Path) -> None:
    saved = randomize(make()).eval()
    replace_attention(saved, blocks=[1], kernel_size=5)
    replace_attention(saved, blocks=[0])
    timm.models.save_for_hf(saved, str(tmp_path), safe_serialization=safe)
    opened: Any = from_pretrained(timm.create_model, f"local-dir:{tmp_path}").eval()
    assert_same(opened, saved)
    images = torch.randn(2, *opened.pretrained_cfg["input_size"])
    assert torch.equal(opened(images), saved(images))
    again = tmp_path / "again"
    timm.models.save_for_hf(opened, str(again), safe_serialization=safe)
    assert_same(from_pretrained(timm.create_model, f"local-dir:{again}"), saved)
    with pytest.raises(RuntimeError, match="Missing key"):  # timm alone does not open it in silence
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_timm_with_another_head(tmp_path: Path) -> None:
    saved: Any = randomize(vit())
    replace_attention(saved)
    timm.models.save_for_hf(saved, str(tmp_path), safe_serialization=True)
    opened: Any = from_pretrained(timm.create_model, f"local-dir:{tmp_path}", num_classes=7)
    assert opened.head.out_features == 7
    assert torch.equal(
        opened.blocks[1].attn.mixer.value_proj.weight, saved.blocks[1].attn.mixer.value_proj.weight
    )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_transformers(kind: str, tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    saved, images = transformer(kind), torch.randn(2, 3, 32, 32)
    replace_attention(saved, kernel_size=5, every=2)
    saved.save_pretrained(tmp_path)
    for cls in (type(saved), library.AutoModel):
        opened = from_pretrained(cls, tmp_path)
        assert_same(opened, saved)
        assert torch.equal(opened(images)[0], saved(images)[0])
    opened.save_pretrained(tmp_path / "again")
    assert_same(from_pretrained(library.AutoModel, tmp_path / "again"), saved)


@torch.no_grad()
def test_transformers_with_a_head_and_without(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    options = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2}
    saved = library.ViTForImageClassification(library.ViTConfig(num_hidden_layers=2, **options))
    randomize(saved).eval()
    replace_attention(saved.vit)
    saved.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    opened = from_pretrained(library.AutoModelForImageClassification, tmp_path)
    assert_same(opened, saved)
    assert torch.equal(opened(images).logits, saved(images).logits)
    opened.save_pretrained(tmp_path / "again")
    bare, info = from_pretrained(
        library.ViTModel,
        tmp_path / "again",
        dtype=torch.bfloat16,
        output_loading_info=True,
        add_pooling_layer=False,
    )
    assert not info["missing_keys"]
    assert bare.dtype == torch.bfloat16
    expected = saved.vit.bfloat16()(images.bfloat16())[0]
    assert torch.equal(bare(images.bfloat16())[0], expected)


@pytest.mark.parametrize("make", [dit, unet, pixart, sd3])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@torch.no_grad()
def test_diffusers(make: Any, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    saved, inputs = make()
    inputs["timestep"] = torch.tensor([3, 500])
    randomize(saved).eval()
    replace_attention(saved, every=2, kernel_size=5)
    saved.save_pretrained(tmp_path / "part")
    opened = from_pretrained(
        type(saved), tmp_path, subfolder="part", low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert_same(opened, saved)
    assert torch.equal(opened(**inputs).sample, saved(**inputs).sample)
    opened.save_pretrained(tmp_path / "again")
    assert_same(from_pretrained(type(saved), tmp_path / "again"), saved)


def test_what_was_not_replaced_is_not_opened(tmp_path: Path) -> None:
    saved, _ = dit()
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"nothing was replaced in .*: open it as its library does"):
        from_pretrained(type(saved), tmp_path)
    with pytest.raises(TypeError, match=r"timm\.create_model or a model class of transformers or diffusers"):
        from_pretrained(nn.Linear, tmp_path)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({}, "a description maps names to options"),
        ("blocks.0.attn", "a description maps names to options"),
        ({"blocks.0.attn": {"kernel_size": 4}}, "kernel_size must be an odd whole number, got 4"),
        ({"blocks.0.attn": {"kernel": 3}}, "the options of an attention are such as"),
        (
            {"blocks.0.attn": {"kernel_size": 3}, "blocks.7.attn": {"kernel_size": 3}},
            "nothing to replace at blocks.7.attn",
        ),
    ],
)
def test_descriptions_that_do_not_fit_are_rejected(description: Any, message: str) -> None:
    model = vit()
    before = list(model.modules())
    with pytest.raises(ValueError, match=message):
        apply(model, description)
    assert list(model.modules()) == before


def test_what_is_replaced_already_is_named() -> None:
    model = vit()
    replace_attention(model)
    with pytest.raises(ValueError, match=r"at blocks\.0\.attn: it is ATConv already"):
        apply(model, describe(model))
