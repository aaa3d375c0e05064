"""Replacement in diffusers' and transformers' models."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atconv import replace_attention
from atconv.replace.adapters import ATConvAdapter
from support.helpers import assert_close, randomize

diffusers = pytest.importorskip("diffusers")


def dit(**options: Any) -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=16,
        patch_size=2, num_embeds_ada_norm=10, **options,
    )  # fmt: skip
    return model, {"hidden_states": torch.randn(2, 4, 16, 16), "class_labels": torch.tensor([1, 2])}


def unet(**options: Any) -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=8, norm_num_groups=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **options,
    )  # fmt: skip
    return model, {"sample": torch.randn(2, 4, 16, 24), "encoder_hidden_states": torch.randn(2, 5, 8)}


def pixart() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=16, cross_attention_dim=16,
        caption_channels=8, norm_num_groups=8,
    )  # fmt: skip
    conditions = {"resolution": None, "aspect_ratio": None}
    text = torch.randn(2, 5, 8)
    return model, {
        "hidden_states": torch.randn(2, 4, 16, 16),
        "encoder_hidden_states": text,
        "added_cond_kwargs": conditions,
    }


def sd3() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        caption_projection_dim=16, pooled_projection_dim=8, out_channels=16, dual_attention_layers=(0, 1),
        pos_embed_max_size=32,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(2, 16, 16, 24),
        "encoder_hidden_states": torch.randn(2, 5, 8),
        "pooled_projections": torch.randn(2, 8),
    }


@pytest.mark.parametrize(
    ("make", "replaced", "kept"),
    [
        (dit, {"attn1": 2}, {}),
        (unet, {"attn1": 4}, {"attn2": "it is cross-attention"}),
        (pixart, {"attn1": 2}, {"attn2": "it is cross-attention"}),
        (sd3, {"attn2": 2}, {"attn": "it mixes text and image tokens"}),
    ],
)
def test_self_attention_over_images_is_replaced(make: Any, replaced: dict[str, int], kept: Any) -> None:
    model, inputs = make()
    inputs["timestep"] = torch.tensor([3, 500])
    randomize(model).eval()
    with torch.no_grad():
        before = model(**inputs).sample
    report = replace_attention(model, example=inputs)
    names = [row.name.rpartition(".")[2] for row in report.replaced]
    assert {name: names.count(name) for name in names} == replaced
    assert {name.rpartition(".")[2]: reason for name, reason in report.kept.items()} == kept
    assert report.macs is not None
    assert 0 < report.macs[1] < report.macs[0]
    seen: list[tuple[Tensor, Tensor]] = []
    attention: Any = next(m for m in model.modules() if isinstance(m, ATConvAdapter))
    attention.register_forward_hook(
        lambda m, args, kwargs, output: seen.append((args[0] if args else kwargs["hidden_states"], output)),
        with_kwargs=True,
    )
    after = model(**inputs).sample
    assert after.shape == before.shape
    assert not torch.allclose(after, before)
    after.square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    latent = inputs["sample" if "sample" in inputs else "hidden_states"].shape[-2:]
    tokens, output = seen[0]
    patch = round((latent[0] * latent[1] / tokens.shape[1]) ** 0.5)
    size = (latent[0] // patch, latent[1] // patch)
    assert torch.equal(output, attention.mixer(tokens, grid_size=size))


def test_cross_attention_that_is_asked_for_is_rejected() -> None:
    model, _ = unet()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"nothing was replaced\. .*attn2.*: it is cross-attention; let "):
        replace_attention(model, where=lambda name, module: True)
    assert list(model.state_dict()) == before


def test_attention_to_grounding_tokens_is_kept() -> None:
    model, inputs = unet(attention_type="gated")
    report = replace_attention(model, example=inputs | {"timestep": torch.tensor([3, 500])})
    assert {row.name.rpartition(".")[2] for row in report.replaced} == {"attn1"}
    fusers = {reason for name, reason in report.kept.items() if "fuser" in name}
    assert fusers == {"it mixes image and grounding tokens"}


def test_joint_attention_of_other_models_is_named() -> None:
    flux = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    aura = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=16, pos_embed_max_size=64,
    )  # fmt: skip
    video = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=4,
        text_embed_dim=8, num_layers=1, sample_width=8, sample_height=8, sample_frames=1, patch_size=2,
    )  # fmt: skip
    for model in (flux, aura, video):
        with pytest.raises(ValueError, match=r"nothing was replaced\. .*: it mixes text and image tokens$"):
            replace_attention(model)


def test_outputs_that_are_scaled_and_dropped() -> None:
    model, _ = dit(dropout=0.25)
    replace_attention(model)
    drops = [m.proj_drop for m in model.modules() if isinstance(m, ATConvAdapter)]
    assert drops
    assert all(isinstance(drop, nn.Dropout) and drop.p == 0.25 for drop in drops)
    model, _ = dit()
    for module in model.modules():
        if isinstance(module, diffusers.models.attention_processor.Attention):
            module.rescale_output_factor = 2.0
    with pytest.raises(ValueError, match=r"it divides its output by 2\.0"):
        replace_attention(model)


KINDS = ("ViT", "Dinov2", "Dinov2WithRegisters", "ViTMSN", "DeiT", "Beit", "IJepa", "DINOv3ViT")


def transformer(kind: str, **more: Any) -> Any:
    library = pytest.importorskip("transformers")
    options = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 2} | ({"num_register_tokens": 4} if kind == "DINOv3ViT" else {})
    config = getattr(library, f"{kind}Config")(**options | more)
    return randomize(getattr(library, f"{kind}Model")(config)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers(kind: str) -> None:
    model, images = transformer(kind), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)[0]
    report = replace_attention(model)
    assert len(report.replaced) == 2
    assert all(row.copied for row in report.replaced)
    assert report.macs is not None
    after = model(images)[0]
    assert after.shape == before.shape
    assert not torch.allclose(after, before)
    after.square().sum().backward()
    assert all(
        m.mixer.context_proj.weight.grad.abs().sum() > 0 for m in model.modules() if hasattr(m, "mixer")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_route_a_map_that_is_not_square(kind: str) -> None:
    model, seen = transformer(kind), []
    replace_attention(model)
    attention = next(m for m in model.modules() if isinstance(m, ATConvAdapter))
    attention.register_forward_hook(
        lambda m, args, kwargs, output: seen.append((args[0] if args else kwargs["hidden_states"], output)),
        with_kwargs=True,
    )
    model(torch.randn(1, 3, 16, 40), interpolate_pos_encoding=True)
    [(tokens, (output, _))] = seen
    assert attention.mixer.num_prefix_tokens == tokens.shape[1] - 10
    assert torch.equal(output, attention.mixer(tokens, grid_size=(2, 5)))


@pytest.mark.parametrize("bias", ["use_relative_position_bias", "use_shared_relative_position_bias"])
def test_beit_with_position_biases(bias: str) -> None:
    model, images = transformer("Beit", **{bias: True}), torch.randn(2, 3, 32, 32)
    assert len(replace_attention(model).replaced) == 2
    model(images)[0].square().sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_export_and_compile_in_full(kind: str, reset_compiler: None) -> None:
    model, images = transformer(kind, num_hidden_layers=1), torch.randn(2, 3, 32, 32)
    replace_attention(model)
    with torch.no_grad():
        expected = model(images)[0]
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(images)[0], expected, 1e-5)
        exported = torch.export.export(model, (images,)).module()
        assert_close(exported(images)[0], expected, 1e-5)


def test_transformers_of_another_release_are_named() -> None:
    model = transformer("Dinov2")
    for module in model.modules():
        if type(module).__name__ == "Dinov2Attention":
            module.value = module.v_proj
            del module.v_proj
    with pytest.raises(ValueError, match=r"attention: this release of transformers builds it in a way"):
        replace_attention(model)


def test_masks_of_patches_are_rejected() -> None:
    model, images, mask = transformer("ViT"), torch.randn(1, 3, 32, 32), torch.ones(1, 17)
    replace_attention(model)
    before = list(inspect.signature(model.forward).parameters).index("attention_mask") - 1
    with pytest.raises(ValueError, match="ATConv takes no attention mask"):
        model(images, attention_mask=mask)
    with pytest.raises(ValueError, match="ATConv takes no attention mask"):
        model(images, *[None] * before, mask)


def test_a_subclass_is_recognized_by_what_it_extends() -> None:
    class Mine(diffusers.DiTTransformer2DModel): ...

    model = Mine(num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=16)
    assert len(replace_attention(model).replaced) == 1


def test_masks_are_checked_once() -> None:
    model = transformer("ViT")
    replace_attention(model)
    assert len(model._forward_pre_hooks) == 1
