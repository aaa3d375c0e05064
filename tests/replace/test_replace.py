"""Attention out, ATConv in: in the models of four libraries, all of it or none."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

import atconv
from atconv import functional, replace_attention
from atconv.models import detector
from atconv.replace.adapters import ATConvAdapter, GridWriter
from atconv.replace.counting import macs
from atconv.replace.families import Site, find_sites
from support.helpers import assert_close, randomize

Make = Callable[[], nn.Module]


def vit(**options: Any) -> nn.Module:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **small | options)


def deit() -> nn.Module:
    return timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=2)


def beit() -> nn.Module:
    return timm.create_model(
        "beit_base_patch16_224", img_size=(24, 40), patch_size=8, embed_dim=16, depth=2, num_heads=2
    )


def eva() -> nn.Module:
    return timm.create_model("eva02_tiny_patch14_224", img_size=(28, 42), embed_dim=24, depth=2, num_heads=2)


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
    )


def swin_v2() -> nn.Module:
    return timm.create_model(
        "swinv2_tiny_window8_256", img_size=64, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2)
    )


def maxvit(**options: Any) -> nn.Module:
    sizes = {"window_size": (4, 4), "grid_size": (4, 4), "dim_head": 4}
    transformer = {f"transformer_{name}": value for name, value in (sizes | options).items()}
    return timm.create_model(
        "maxvit_tiny_tf_224", img_size=64, embed_dim=(8, 8), depths=(1, 1), stem_width=8, **transformer
    )


def relative_vit() -> nn.Module:
    return timm.create_model(
        "vit_relpos_small_patch16_224", img_size=(24, 40), patch_size=8, embed_dim=16, depth=2, num_heads=2
    )


def pvt() -> nn.Module:
    return timm.create_model("pvt_v2_b0", depths=(1, 1, 1, 1))


def coatnet() -> nn.Module:
    return timm.create_model("coatnet_nano_rw_224", img_size=64)


def torchvision_vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(model.heads[-1].weight)
    return model


def torchvision_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5)


VISION: dict[str, tuple[Make, tuple[int, int], int]] = {
    "ViT": (vit, (32, 32), 2),
    "ViT, registers, not square": (lambda: vit(reg_tokens=3, dynamic_img_size=True), (24, 40), 2),
    "ViT, no class token": (lambda: vit(class_token=False, global_pool="avg"), (32, 32), 2),
    "distilled DeiT": (deit, (32, 32), 2),
    "BEiT": (beit, (24, 40), 2),
    "EVA": (eva, (28, 42), 2),
    "Swin": (swin, (64, 64), 4),
    "Swin v2": (swin_v2, (64, 64), 4),
    "MaxViT": (maxvit, (64, 64), 4),
    "MaxViT, channels first": (lambda: maxvit(use_nchw_attn=True, init_values=0.5), (64, 64), 4),
    "relative-position ViT": (relative_vit, (24, 40), 2),
    "PVTv2": (pvt, (64, 96), 4),
    "CoAtNet": (coatnet, (64, 64), 7),
    "torchvision ViT": (torchvision_vit, (32, 32), 2),
    "torchvision Swin": (torchvision_swin, (32, 48), 4),
}  # fmt: skip


@pytest.fixture(params=VISION)
def family(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, int]:
    make, size, count = VISION[request.param]
    return randomize(make()).eval(), torch.randn(2, 3, *size), count


def grids(model: nn.Module) -> set[int]:
    return {id(m.grid) for m in model.modules() if isinstance(m, ATConvAdapter) and m.grid is not None}


def mixers(model: nn.Module) -> list[atconv.ATConvTokens]:
    return [module for module in model.modules() if isinstance(module, atconv.ATConvTokens)]


def test_every_attention_is_replaced_and_learns(family: tuple[nn.Module, Tensor, int]) -> None:
    model, images, count = family
    before = model(images)
    report = replace_attention(model)
    assert len(report.replaced) == count == len(mixers(model))
    after = model(images)
    assert after.shape == before.shape
    assert torch.isfinite(after).all()
    assert not torch.allclose(after, before)
    model(images).square().sum().backward()
    learning = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None]
    idle = {name for name, p in model.named_parameters() if p.requires_grad} - {*learning}
    idle |= {name for name in learning if not model.get_parameter(name).grad.any()}
    # Patches do not see the class token: where the mean of patches is classified, it says nothing.
    has_token = getattr(model, "cls_token", None) is not None
    unseen = {"cls_token"} if has_token and model.global_pool == "avg" else set()
    assert idle == unseen
    assert all(
        m.context_proj is not None and m.context_proj.weight.grad.abs().sum() > 0 for m in mixers(model)
    )


def test_copies_and_saved_weights_compute_the_same(family: tuple[nn.Module, Tensor, int]) -> None:
    model, images, _ = family
    other = copy.deepcopy(model)
    replace_attention(model)
    replace_attention(other)
    with torch.no_grad():
        expected = model(images)
        assert not torch.equal(other(images), expected)  # kernels start at random
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(images), expected)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(images), expected)
    assert not grids(model) & grids(twin)


def test_value_and_output_projections_are_those_of_the_attention(
    family: tuple[nn.Module, Tensor, int],
) -> None:
    """Where all tokens are alike, attention gives each its value, projected: so must the copied weights."""
    model, images, _ = family
    # PVTv2's values are those of a reduced map wherever it reduces.
    reduced = {name for name, module in model.named_modules() if getattr(module, "sr", None) is not None}
    sites = [site for site in find_sites(model) if site.make is not None and site.name not in reduced]
    assert sites
    met = [_feed_one_token(model, site) for site in sites]
    with torch.no_grad():
        model(images)
    for site, (token, outputs) in zip(sites, met, strict=True):
        assert site.projections is not None
        (value, value_bias), (output, output_bias) = site.projections
        projected = output @ (value @ token + (0 if value_bias is None else value_bias)) + output_bias
        assert_close(projected.detach(), outputs[0], 1e-4)


def _feed_one_token(model: nn.Module, site: Site) -> tuple[Tensor, list[Tensor]]:
    """Let an attention see one token everywhere; returns that token, and later what came out for it."""
    module: Any = model.get_submodule(site.name)
    attention = getattr(module, "attn", module)
    axis = 1 if isinstance(getattr(attention, "qkv", None), nn.Conv2d) else -1
    token, outputs = torch.randn(site.dim), []

    def before(m: nn.Module, inputs: Any, named: Any) -> Any:
        shape = [1] * inputs[0].ndim
        shape[axis] = site.dim
        constant = token.view(shape).expand_as(inputs[0]).contiguous()
        query_key_value = isinstance(module, nn.MultiheadAttention)
        return ((constant,) * 3 if query_key_value else (constant, *inputs[1:])), named

    def after(m: nn.Module, inputs: Any, output: Any) -> None:
        tokens = output[0] if isinstance(output, tuple) else output
        outputs.append(tokens.movedim(axis, -1).flatten(0, -2)[0])

    attention.register_forward_pre_hook(before, with_kwargs=True)
    attention.register_forward_hook(after)
    return token, outputs


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_prefix_tokens_take_the_mean_of_their_value_and_the_map(prefix: int) -> None:
    mixer = randomize(atconv.ATConvTokens(6, num_prefix_tokens=prefix)).double()
    plain = copy.deepcopy(mixer)
    plain.num_prefix_tokens = 0
    x = torch.randn(2, prefix + 12, 6, dtype=torch.float64)
    height, width = 3, 4
    mixed = mixer(x, grid_size=(height, width))
    spatial = x[:, prefix:].transpose(1, 2).reshape(2, 6, height, width)
    kernel = mixer.kernels(spatial)
    value = mixer.value_proj(x)
    routed = functional.dynamic_depthwise_conv(
        value[:, prefix:].transpose(1, 2).reshape(2, 6, height, width), kernel
    ).flatten(2)
    assert_close(mixed[:, prefix:], mixer.proj(routed.transpose(1, 2)), 1e-10)
    assert_close(mixed[:, prefix:], plain(x[:, prefix:], grid_size=(height, width)), 1e-10)
    alike = torch.cat((value[:, :prefix].transpose(1, 2), routed), 2).mean(2)
    for token in range(prefix):
        assert_close(mixed[:, token], mixer.proj(alike), 1e-10)


@torch.no_grad()
def test_equal_tokens_are_answered_as_attention_answers_them() -> None:
    """Each gets the value of all, but for the random part of kernels, and the border of the map."""
    size, prefix = 12, 3
    model: Any = vit(depth=1, img_size=8 * size, reg_tokens=prefix - 1).eval()
    x = torch.randn(1, 1, 16).expand(1, prefix + size**2, 16)
    expected = model.blocks[0].attn(x)[:, :1]
    replace_attention(model)
    model(torch.randn(1, 3, 8 * size, 8 * size))
    mixer = model.blocks[0].attn.mixer
    mixer.kernel_gen.weight.zero_()
    mixed = model.blocks[0].attn(x)
    inside = mixed[:, prefix:].unflatten(1, (size, size))[:, 1:-1, 1:-1].flatten(1, 2)
    assert_close(inside, expected.expand_as(inside), 1e-5)
    there = ((3 * size - 2) / (3 * size)) ** 2  # share of the kernels' weights that lies inside the map
    share = (prefix + size**2 * there) / (prefix + size**2)
    bias = mixer.proj.bias
    assert_close(mixed[:, :prefix], (share * (expected - bias) + bias).expand(1, prefix, 16), 1e-5)


def test_register_tokens_reach_the_class_token() -> None:
    model: Any = vit(reg_tokens=2)
    replace_attention(model)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for token in (model.cls_token, model.reg_token):
        assert token.grad.abs().min() > 0


def test_many_tokens_do_not_overflow_half_precision() -> None:
    mixer = atconv.ATConvTokens(4, num_prefix_tokens=1).eval()
    with torch.no_grad():
        mixer.value_proj.bias.fill_(30.0)
    x = torch.randn(1, 1 + 64 * 64, 4)
    expected = mixer(x, grid_size=(64, 64))
    coarse = mixer.half()(x.half(), grid_size=(64, 64))
    assert_close(coarse.float(), expected, 1e-2)


def test_the_grid_is_that_of_the_image() -> None:
    model: Any = vit(dynamic_img_size=True, depth=1).eval()
    replace_attention(model)
    wide, high = torch.randn(1, 3, 16, 64), torch.randn(1, 3, 64, 16)
    attention, seen = model.blocks[0].attn, []
    attention.register_forward_hook(lambda m, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        for image, size in ((wide, (2, 8)), (high, (8, 2))):
            model(image)
            tokens, output = seen[-1]
            assert torch.equal(output, attention.mixer(tokens, grid_size=size))
            assert not torch.allclose(output, attention.mixer(tokens, grid_size=size[::-1]))


def test_kernels_start_as_local_averages() -> None:
    model = vit()
    replace_attention(model, kernel_size=5)
    for mixer in mixers(model):
        kernel = mixer.kernels(torch.zeros(1, 16, 4, 4))
        assert kernel.shape == (1, 16, 5, 5)
        assert (kernel * 25 - 1).abs().max() < 1
        assert (kernel.mean((2, 3)) * 25 - 1).abs().max() < 0.2


@pytest.mark.parametrize("other", ["autocast", "checkpointing", "second size"])
def test_it_runs_as_the_model_did(other: str) -> None:
    model: Any = randomize(vit(dynamic_img_size=True)).train()
    replace_attention(model)
    images = torch.randn(2, 3, 24, 40)
    expected = model(images)
    expected.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    if other == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(model(images).float(), expected, 5e-2)
    elif other == "checkpointing":
        model.set_grad_checkpointing()
        model(images).sum().backward()
        for name, p in model.named_parameters():
            assert_close(p.grad, gradients[name], 1e-5)
    else:
        model(torch.randn(1, 3, 32, 16))
        assert torch.equal(model(images), expected)


@pytest.mark.usefixtures("reset_compiler")
@pytest.mark.parametrize("make", [vit, torchvision_vit, swin, pvt])
def test_it_compiles_in_full(make: Make) -> None:
    model = randomize(make()).eval()
    replace_attention(model)
    images = torch.randn(2, 3, 64, 64) if make in (swin, pvt) else torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(images), model(images), 1e-5)


def test_the_report_counts(capsys: pytest.CaptureFixture[str]) -> None:
    model = vit()
    report = replace_attention(model, blocks=[1])
    tokens, dim, bins = 17, 16, 9
    row = report.replaced[0]
    assert row.name == "blocks.1.attn"
    assert row.parameters == (4 * dim * dim + 4 * dim, 3 * dim * dim + 4 * dim + bins * bins + bins)
    assert row.macs == (
        4 * tokens * dim * dim + 2 * tokens * tokens * dim,
        2 * tokens * dim * dim + bins * dim * (dim + bins) + bins * (tokens - 1) * dim,
    )
    assert report.parameters[1] - report.parameters[0] == row.parameters[1] - row.parameters[0]
    assert report.parameters[1] == sum(p.numel() for p in model.parameters())
    assert report.kept == {"blocks.0.attn": "not chosen"}
    table = str(report)
    assert "blocks.1.attn" in table
    assert f"{row.parameters[0]:,} → {row.parameters[1]:,}" in table
    assert "kept: blocks.0.attn (not chosen)" in table
    assert report.macs is not None
    assert table.splitlines()[0].endswith("GMACs")
    assert f"{report.macs[0] / 1e9:.3g} → {report.macs[1] / 1e9:.3g}" in table


def test_some_blocks_can_be_chosen() -> None:
    model = vit(depth=6)
    report = replace_attention(model, every=2, where=lambda name, module: "5" not in name)
    assert [row.name for row in report.replaced] == ["blocks.1.attn", "blocks.3.attn"]
    late = lambda name, module: name > "blocks.2"  # noqa: E731
    assert [row.name for row in replace_attention(vit(depth=6), late, blocks=[0, 4]).replaced] == [
        "blocks.4.attn"
    ]
    assert [row.name for row in replace_attention(model, blocks=[0]).replaced] == ["blocks.0.attn"]


def test_what_cannot_be_replaced_is_named_and_nothing_is_touched() -> None:
    model: Any = vit()
    model.blocks[1].attn.qkv = nn.Sequential(model.blocks[1].attn.qkv)  # such as an adapter
    before = list(model.modules())
    with pytest.raises(ValueError, match=r"nothing was replaced\. blocks\.1\.attn: its qkv is a Sequential"):
        replace_attention(model, where=lambda name, module: True)
    assert list(model.modules()) == before
    kept = replace_attention(coatnet()).kept
    assert set(kept) == {"stages.2.blocks.0.attn", "stages.3.blocks.0.attn"}
    assert kept["stages.2.blocks.0.attn"] == "it turns 128 channels into 256"
    with pytest.raises(ValueError, match="ResNet has no attention that could be replaced"):
        replace_attention(timm.create_model("resnet18"))
    with pytest.raises(ValueError, match="patch_drop leaves out tokens"):
        replace_attention(vit(patch_drop_rate=0.5))
    with pytest.raises(ValueError, match="not the self-attention of a torchvision VisionTransformer"):
        replace_attention(nn.TransformerEncoderLayer(16, 2, batch_first=True))
    with pytest.raises(ValueError, match=r"blocks must lie in 0…1, got \[7\]"):
        replace_attention(vit(), blocks=[7])
    with pytest.raises(ValueError, match="every must be at least 1"):
        replace_attention(vit(), every=0)
    with pytest.raises(ValueError, match="none of the 2 attentions was chosen"):
        replace_attention(vit(), where=lambda name, module: False)


class Unused(nn.Module):
    """A model that does not run its second block."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = vit()

    def forward(self, x: Tensor) -> Tensor:
        return self.body.blocks[0](self.body.patch_embed(x) + self.body.pos_embed[:, 1:])


def test_attention_that_does_not_run_counts_nothing() -> None:
    model = Unused()
    model.body.num_prefix_tokens = 0
    report = replace_attention(model, example=torch.randn(1, 3, 32, 32))
    first, second = report.replaced
    assert first.macs is not None
    assert first.macs[0] > 0
    assert second.macs == (0, 0)


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_nothing_stays_half_replaced_whatever_goes_wrong(error: BaseException) -> None:
    model: Any = vit()
    before = list(model.modules())
    with mock.patch("atconv.replace.swap.ReplacementReport", side_effect=error), pytest.raises(type(error)):
        replace_attention(model)
    assert list(model.modules()) == before
    assert not model.patch_embed._forward_pre_hooks


def test_shared_attention_is_replaced_in_every_place() -> None:
    model: Any = vit(depth=3)
    model.blocks[2].attn = model.blocks[0].attn
    report = replace_attention(model)
    assert [row.name for row in report.replaced] == ["blocks.0.attn", "blocks.1.attn"]
    assert model.blocks[2].attn is model.blocks[0].attn
    assert isinstance(model.blocks[0].attn, ATConvAdapter)
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_dropout_behind_the_attention_stays() -> None:
    for make in (lambda: vit(proj_drop_rate=0.3), lambda: maxvit(proj_drop=0.3)):
        model = make()
        replace_attention(model)
        drops = [m.proj_drop for m in model.modules() if isinstance(m, ATConvAdapter)]
        assert drops
        assert all(isinstance(drop, nn.Dropout) and drop.p == 0.3 for drop in drops)
    model = torchvision.models.SwinTransformer([4, 4], 8, [2], [2], [4, 4], dropout=0.2)
    replace_attention(model)
    attention: Any = model.features[1][0].attn
    assert attention.proj_drop.p == 0.2
    plain: Any = vit()
    replace_attention(plain)
    assert isinstance(plain.blocks[0].attn.proj_drop, nn.Identity)
    plain.blocks[0].attn.proj_drop = nn.Dropout(1.0)
    plain.train()(torch.randn(1, 3, 32, 32))
    assert plain.blocks[0].attn(torch.randn(1, 17, 16)).abs().max() == 0


def test_models_without_storage_are_replaced_too() -> None:
    with torch.device("meta"):
        model = vit()
    replace_attention(model)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(blocks=1), TypeError, "blocks is a list of whole numbers"),
        (dict(blocks=["1"]), TypeError, "blocks is a list of whole numbers"),
        (dict(where="blocks.0"), TypeError, "where is a function of name and module"),
        (dict(every="2"), ValueError, "every must be at least 1, a whole number, got '2'"),
        (dict(every=1.5), ValueError, "every must be at least 1, a whole number, got 1.5"),
        (dict(model="vit"), TypeError, "takes a model, an nn.Module, got a str"),
    ],
)
def test_arguments_of_another_kind_are_rejected(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = vit()
    with pytest.raises(error, match=message):
        replace_attention(**({"model": model} | arguments))
    assert not mixers(model)


def test_a_model_that_fails_with_atconv_in_it_is_put_back() -> None:
    class Dropping(nn.Module):  # unknown to the patch embedding
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :-1]

    model: Any = vit()
    model.norm_pre = Dropping()
    before, images = list(model.modules()), torch.randn(2, 3, 32, 32)
    expected = model.eval()(images)
    with pytest.raises(ValueError, match=r"replaced\. VisionTransformer does not run with ATConv"):
        replace_attention(model)
    assert all(now is then for now, then in zip(model.modules(), before, strict=True))
    assert not model.patch_embed._forward_pre_hooks
    assert torch.equal(model(images), expected)


SIZES = ((16, 64), (24, 24), (64, 16))  # the first and the last have as many tokens


def checkpointed(reentrant: bool, frozen: bool = False) -> nn.Module:
    model: Any = randomize(vit(dynamic_img_size=True)).train().requires_grad_(not frozen)
    replace_attention(model)
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=reentrant)
    return model


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointing_runs_sizes_one_after_the_other(frozen: bool) -> None:
    model: Any = randomize(vit(dynamic_img_size=True)).train().requires_grad_(not frozen)
    replace_attention(model)
    views = [torch.randn(2, 3, *size) for size in SIZES]
    sum(model(view).sum() for view in views).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert gradients
    model.zero_grad()
    model.set_grad_checkpointing()
    for view in views:
        model(view).sum().backward()
        model(view)  # a pass that is dropped changes nothing
    for name, gradient in gradients.items():
        assert_close(model.get_parameter(name).grad, gradient, 1e-5)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_rejects_several_sizes_in_flight(reentrant: bool, frozen: bool) -> None:
    model = checkpointed(reentrant, frozen)
    first, *_ = [model(torch.randn(2, 3, *size).requires_grad_()).sum() for size in SIZES[:2]]
    with pytest.raises(
        ValueError, match=r"17 tokens are not 1 and a grid of 3 × 3: .* checkpointing recomputes"
    ):
        first.backward()
    model(torch.randn(2, 3, *SIZES[1]).requires_grad_()).sum().backward()


def test_checkpointing_rejects_two_grids_of_as_many_tokens_in_flight() -> None:
    model = checkpointed(reentrant=False)
    first, later = (model(torch.randn(2, 3, *size)).sum() for size in SIZES[::2])
    with pytest.raises(CheckpointError, match="different metadata"):
        first.backward()
    del first
    later.backward()


def test_reentrant_checkpointing_rejects_two_grids_of_as_many_tokens() -> None:
    model = checkpointed(reentrant=True)
    first = model(torch.randn(2, 3, *SIZES[0])).sum()
    model(torch.randn(2, 3, 32, 40)).sum().backward()
    with pytest.raises(ValueError, match="grids of 2 × 8 and 8 × 2 have as many tokens"):
        model(torch.randn(2, 3, *SIZES[2]))
    del first
    model(torch.randn(2, 3, *SIZES[0])).sum().backward()


def test_a_copy_after_export_begins_without_a_pass() -> None:
    model: Any = vit(dynamic_img_size=True).eval()
    replace_attention(model)
    dims = {"x": {2: 8 * torch.export.Dim("down", max=8), 3: 8 * torch.export.Dim("across", max=8)}}
    torch.export.export(model, (torch.randn(1, 3, 16, 24),), dynamic_shapes=dims)
    images = torch.randn(1, 3, 32, 16)
    assert torch.equal(copy.deepcopy(model)(images), model(images))


def test_counting_leaves_no_caches_without_data() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit, self.seen, self.last = vit(), [torch.zeros(2)], None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.vit(x)
            self.seen.append(self.last)
            self.extra = self.last
            return sum(self.seen[1:])  # type: ignore[return-value]

    model = Caching()
    assert replace_attention(model, example=torch.randn(1, 3, 32, 32)).macs is not None
    assert model.last is None
    assert len(model.seen) == 1
    assert not hasattr(model, "extra")
    assert not model(torch.randn(1, 3, 32, 32)).is_meta
    last = model.last
    counts = macs(model, torch.randn(1, 3, 32, 32))  # with what a graph holds among its attributes
    assert counts[""] > 0
    assert model.last is last


def test_a_model_that_cannot_be_copied_is_replaced_without_counting() -> None:
    model: Any = vit()
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"nothing was replaced\. .* cannot be copied to count without data"):
        replace_attention(model, example=torch.randn(1, 3, 32, 32))
    assert replace_attention(model).macs is None
    assert len(mixers(model)) == 2


def test_a_detector_still_runs() -> None:
    model = detector("pvt_v2_b0", 2, channels=8, min_size=64, max_size=96).eval()
    images = [torch.rand(3, 64, 80)]
    report = replace_attention(model)
    assert len(report.replaced) == 8
    with torch.no_grad():
        assert set(model(images)[0]) == {"boxes", "labels", "scores"}


def test_pooling_by_attention_is_kept() -> None:
    model = timm.create_model(
        "vit_base_patch16_siglip_224", img_size=32, embed_dim=48, depth=2, num_heads=2, num_classes=5
    )
    report = replace_attention(model)
    assert report.macs is not None
    assert list(report.kept) == ["attn_pool"]
    model(torch.randn(1, 3, 32, 32)).sum().backward()


def test_the_size_of_the_input_can_be_set_again() -> None:
    for model, size in ((vit(), 64), (swin(), 96), (relative_vit(), 64)):
        replace_attention(model)
        model.set_input_size((size, 32))  # type: ignore[operator]
        assert model(torch.randn(1, 3, size, 32)).isfinite().all()
    model = vit()
    replace_attention(model)
    model.set_input_size(img_size=32, patch_size=4)  # type: ignore[operator]
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_a_patch_embedding_behind_convolutions() -> None:
    model = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64)
    replace_attention(model)
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_only_what_can_be_replaced_is_counted() -> None:
    class FancyAttention(nn.Module):
        pass

    model: Any = vit(depth=4)
    model.blocks[1].extra = FancyAttention()
    report = replace_attention(model, every=2)
    assert [row.name for row in report.replaced] == ["blocks.1.attn", "blocks.3.attn"]
    assert "not one that ATConv knows" in report.kept["blocks.1.extra"]
    with pytest.raises(
        ValueError, match=r"blocks\.1\.attn, blocks\.3\.attn: it is ATConv already; blocks\.1\.extra: this"
    ):
        replace_attention(model, where=lambda name, module: True)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn, .* and 1 more: this attention is not one"):
        replace_attention(timm.create_model("cait_xxs24_224", img_size=32, depth=1))


def test_masks_and_lone_blocks_are_rejected() -> None:
    model: Any = vit()
    replace_attention(model)
    with pytest.raises(ValueError, match="run the full model"):
        model.blocks[0](torch.randn(1, 17, 16))
    model(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="takes no attention mask"):
        model.blocks[0](torch.randn(1, 17, 16), attn_mask=torch.ones(17, 17))
    with pytest.raises(ValueError, match="takes no attention mask"):
        model.blocks[0].attn(torch.randn(1, 17, 16), torch.ones(17, 17))
    with pytest.raises(ValueError, match="13 tokens are not 1 and a grid of 4 × 4"):
        model.blocks[0](torch.randn(1, 13, 16))


def test_masks_and_other_keys_of_torchvisions_attention_are_rejected() -> None:
    model: Any = torchvision_vit()
    replace_attention(model)
    model(torch.randn(1, 3, 32, 32))
    attention, x = model.encoder.layers[0].self_attention, torch.randn(1, 17, 16)
    assert attention(x, x, x, None, False)[0].shape == x.shape
    with pytest.raises(ValueError, match="takes no attention mask"):
        attention(x, x, x, torch.zeros(1, 17, dtype=torch.bool))
    with pytest.raises(ValueError, match="takes no attention mask"):
        attention(x, x, x, attn_mask=torch.zeros(17, 17))
    with pytest.raises(ValueError, match="got other tokens as key now"):
        attention(x, torch.randn(1, 5, 16), torch.randn(1, 5, 16))


def test_an_example_that_does_not_fit_is_rejected() -> None:
    model = vit()
    with pytest.raises(ValueError, match=r"nothing was replaced\. VisionTransformer does not take the ex"):
        replace_attention(model, example=torch.randn(1, 3, 24, 24))
    assert not mixers(model)


def test_an_example_of_another_kind_is_rejected() -> None:
    with pytest.raises(TypeError, match="a dictionary of named ones, got a list"):
        replace_attention(vit(), example=[torch.randn(1, 3, 32, 32)])  # type: ignore[arg-type]


def test_the_attention_itself_is_no_model() -> None:
    with pytest.raises(
        ValueError, match=r"d\. MultiheadAttention: it is the whole model: give the model that"
    ):
        replace_attention(nn.MultiheadAttention(16, 2, batch_first=True))


def test_the_image_is_found_by_its_name() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, image: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(image * scale)

    embedding = Scaled(3, 4, 8, 8)
    writer = GridWriter(embedding, lambda embedding: embedding.stride, padded=False)
    embedding.register_forward_pre_hook(writer, with_kwargs=True)
    embedding(scale=torch.ones(()), image=torch.randn(1, 3, 16, 24))
    assert writer.grid.size == (2, 3)


def test_weights_of_half_precision_are_counted_too() -> None:
    report = replace_attention(vit().bfloat16())
    assert report.macs is not None
    other = replace_attention(vit_of_no_known_size())
    assert other.macs is None
    assert "not run: give `example`" in str(other)


def vit_of_no_known_size() -> nn.Module:
    model: Any = vit()
    del model.pretrained_cfg
    return model


def test_projections_behind_a_norm_are_newly_initialized() -> None:
    report = replace_attention(vit(scale_attn_norm=True))
    assert not any(row.copied for row in report.replaced)
    assert "newly initialized in blocks.0.attn, blocks.1.attn" in str(report)


def test_torchvision_with_convolutions_before_the_patches() -> None:
    stem = [torchvision.models.vision_transformer.ConvStemConfig(8, 3, 2) for _ in range(3)]
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, conv_stem_configs=stem)
    report = replace_attention(model)
    assert len(report.replaced) == 2
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("convit_tiny", "blocks.0.attn"),
        ("coat_tiny", "serial_blocks1.0.factoratt_crpe"),
        ("gcvit_xxtiny", "stages.0.blocks.0.attn"),
        ("efficientformerv2_s0", "stages.2.blocks.4.token_mixer"),
        ("levit_128s", "stages.0.blocks.0.attn"),
        ("davit_tiny", "stages.0.blocks.0.0.attn"),
    ],
)
def test_attention_of_other_families_is_named(name: str, first: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=rf"replaced\. {first}, .* more: this attention is not one that"):
        replace_attention(model)


def test_a_model_named_after_attention_is_looked_into() -> None:
    class AttentionClassifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = vit()

    report = replace_attention(AttentionClassifier())
    assert [row.name for row in report.replaced] == ["body.blocks.0.attn", "body.blocks.1.attn"]
