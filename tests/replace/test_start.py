"""Replaced attention that starts from what the trained one answers: exactly where it is a convolution."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv import replace_attention
from atconv.replace import apply, describe
from atconv.replace.adapters import ATConvAdapter
from replace.test_replace import VISION, vit
from support.helpers import assert_close, randomize


def without_content(model: nn.Module) -> nn.Module:
    """Queries are zero: attention depends on positions alone."""
    for module in model.modules():
        qkv: Any = getattr(module, "qkv", None)
        if isinstance(qkv, nn.Linear):
            qkv.weight.data[: len(qkv.weight) // 3] = 0
            if qkv.bias is not None:
                qkv.bias.data[: len(qkv.bias) // 3] = 0
        if hasattr(module, "q_bias"):
            module.q_bias.data.zero_()
    return model


def uniform_vit() -> nn.Module:
    """Uniform attention on 2 × 2 tokens: a 3 × 3 kernel of 1/4 reaches all of them."""
    return without_content(randomize(vit(img_size=16, class_token=False, global_pool="avg")))


def uniform_swin() -> nn.Module:
    """The map is one window of 2 × 2."""
    options = {"window_size": 2, "embed_dim": 8, "depths": (2,), "num_heads": (2,)}
    model = without_content(
        randomize(timm.create_model("swin_tiny_patch4_window7_224", img_size=8, **options))
    )
    for name, parameter in model.named_parameters():
        if "relative_position_bias" in name:
            parameter.data.zero_()
    return model


def self_seeing_vit() -> nn.Module:
    """Position biases that leave each token itself alone, on a map of any size: the identity."""
    options = {"img_size": (24, 40), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_relpos_small_patch16_224", rel_pos_type="bias", **options)
    model = without_content(randomize(model))
    for block in model.blocks:
        table = block.attn.rel_pos.relative_position_bias_table.data
        table.zero_()
        table[len(table) // 2] = 200.0
    return model


def silent_vit() -> nn.Module:
    """Output projections that are zero, as where a branch of a network starts as nothing."""
    model = randomize(vit())
    for block in model.blocks:
        nn.init.zeros_(block.attn.proj.weight)
    return model


EXACT = {
    "uniform": (uniform_vit, (16, 16)),
    "uniform in a window": (uniform_swin, (8, 8)),
    "itself alone": (self_seeing_vit, (24, 40)),
    "silent": (silent_vit, (32, 32)),
}


@pytest.mark.parametrize("name", EXACT)
@torch.no_grad()
def test_the_start_is_exact_where_attention_is_a_convolution(name: str) -> None:
    make, size = EXACT[name]
    original = make().eval()
    model = copy.deepcopy(original)
    report = replace_attention(model, start=torch.randn(3, 3, *size))
    assert len(report.replaced) == 2
    assert all(replacement.explained == pytest.approx(1, abs=1e-7) for replacement in report.replaced)
    assert str(report).count("exact") == 2
    others = torch.randn(3, 3, *size)
    expected = original(others)
    assert_close(model(others), expected, 1e-5)
    adapters = [module for module in model.modules() if isinstance(module, ATConvAdapter)]
    assert all(adapter.mixer.kernel_bias.abs().sum() > 0 for adapter in adapters)


def self_alone(prefix: bool) -> nn.Module:
    """Queries and keys are one rotation, 30 times: each token finds itself alone."""
    options = {} if prefix else {"class_token": False, "global_pool": "avg"}
    model = randomize(vit(num_heads=1, **options))
    for block in model.blocks:
        nn.init.ones_(block.norm1.weight)
        nn.init.zeros_(block.norm1.bias)
        rotation = 30 * nn.init.orthogonal_(torch.empty(16, 16))
        block.attn.qkv.weight.data[:32] = rotation.repeat(2, 1)
        block.attn.qkv.bias.data[:32] = 0
    return model


@torch.no_grad()
def test_a_class_token_that_gets_another_answer_is_not_exact() -> None:
    images = torch.randn(4, 3, 32, 32)
    report = replace_attention(self_alone(prefix=False), start=images)
    assert all(replacement.exact for replacement in report.replaced)
    report = replace_attention(self_alone(prefix=True), start=images)
    assert not any(replacement.exact for replacement in report.replaced)
    assert all(0.5 < replacement.explained < 0.99 for replacement in report.replaced)
    assert "exact" not in str(report)


@torch.no_grad()
def test_fewer_positions_than_weights_are_marked_and_not_exact() -> None:
    report = replace_attention(randomize(vit()), start=torch.randn(1, 3, 32, 32), kernel_size=5)
    assert not any(replacement.determined or replacement.exact for replacement in report.replaced)
    assert "exact" not in str(report)
    assert "too few positions to tell how near the start is" in str(report)
    assert "blocks.0.attn, blocks.1.attn" in str(report)


@torch.no_grad()
def test_the_start_is_the_nearest_static_kernel_of_each_channel() -> None:
    """Against a solver of least squares, from what goes into the output projection of the attention."""
    model: Any = randomize(vit(depth=1, reg_tokens=1)).double().eval()
    attention, size = model.blocks[0].attn, (4, 4)
    seen: dict[str, Tensor] = {}
    attention.register_forward_pre_hook(lambda m, args: seen.update(tokens=args[0]))
    attention.proj.register_forward_pre_hook(lambda m, args: seen.update(mixed=args[0]))
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    model(images)
    every_value = attention.qkv(seen["tokens"]).chunk(3, dim=-1)[2]
    values = every_value[:, 2:].mT.unflatten(2, size)
    mixed_prefix, answers = seen["mixed"].split((2, 16), dim=1)
    (replacement,) = replace_attention(model, start=images).replaced
    kernels = model.blocks[0].attn.mixer.kernels(torch.zeros_like(values))
    every_value = every_value.mT
    left = total = averages = 0.0
    for channel in range(16):
        windows = F.unfold(values[:, channel, None], 3, padding=1).mT  # images, positions, weights
        mean, prefix = 16 * windows.mean(1), every_value[:, channel, :2].sum(1, keepdim=True)
        rows = [windows.flatten(0, 1), mean, *(2 * (16 * mean / 18,))]
        mixed, read = answers[..., channel], 16 * (mixed_prefix[..., channel] - prefix / 18)
        wanted = [mixed.flatten(), 16 * mixed.mean(1), *read.T]
        matrix, right = torch.cat(rows), torch.cat(wanted)
        best = torch.linalg.lstsq(matrix, right[:, None]).solution[:, 0]
        weight = ((right - matrix @ best).square().sum() / 6).sqrt() * 9
        near = torch.cat((matrix, weight * torch.eye(9))), torch.cat((right, weight * torch.ones(9) / 9))
        best = torch.linalg.lstsq(near[0], near[1][:, None]).solution[:, 0]
        assert_close(kernels[0, channel].flatten(), best, 1e-6)
        left += float((right - matrix @ best).square().sum())
        averages += float((right - matrix.mean(1)).square().sum())
        total += float(mixed.square().sum() + (16 * mixed.mean(1)).square().sum())
        total += float((16 * mixed_prefix[..., channel]).square().sum())
    assert replacement.explained == pytest.approx(1 - left / total, abs=1e-8)
    assert replacement.averages == pytest.approx(1 - averages / total, abs=1e-8)
    assert replacement.averages < replacement.explained < 0.999


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
@pytest.mark.parametrize("images", [3, 8])
@torch.no_grad()
def test_the_start_changes_a_model_less_than_no_start(options: dict[str, Any], images: int) -> None:
    """On other images too, and what the attention answers for those who read means."""
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224" if "reg_tokens" in options else "deit_tiny_patch16_224"
    model = timm.create_model(name, img_size=64, depth=2, **options).eval()
    seen, others = torch.randn(2, images, 3, 64, 64)
    changes = []
    for start in (seen, None):
        changed = copy.deepcopy(model)
        report = replace_attention(changed, start=start)
        changes.append(float((changed(others) - model(others)).norm()))
        if start is not None:
            assert all(row.averages < row.explained < 0.999 for row in report.replaced)
            assert "averages" in str(report)
    assert changes[0] < changes[1]


@pytest.mark.parametrize("name", VISION)
@torch.no_grad()
def test_every_family_starts_from_its_attention_and_is_saved(name: str) -> None:
    make, size, count = VISION[name]
    model, images = randomize(make()).train(), torch.randn(2, 3, *size)
    opened = copy.deepcopy(model)
    report = replace_attention(model, start=images)
    assert len(report.replaced) == count
    assert all(
        0 <= replacement.explained <= 1 + 1e-9 for replacement in report.replaced if replacement.copied
    )
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert describe(model.state_dict()) == describe(model)
    apply(opened, describe(model))
    opened.load_state_dict(model.state_dict())
    assert torch.equal(opened.eval()(images), model.eval()(images))


def test_what_does_not_fit_is_rejected_and_nothing_is_touched() -> None:
    model = vit()
    state = [id(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"nothing was replaced\. VisionTransformer does not run on `start`"):
        replace_attention(model, start=torch.randn(1, 3, 8, 8))
    with pytest.raises(TypeError, match="an example is a tensor"):
        replace_attention(model, start="images")
    with pytest.raises(ValueError, match=r"nothing was replaced\. `start` brings no image to blocks\.0"):
        replace_attention(model, start=torch.zeros(0, 3, 32, 32))
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"blocks\.0\.attn computes numbers that are not finite"):
            replace_attention(model, start=torch.full((2, 3, 32, 32), number))
    assert [id(module) for module in model.modules()] == state
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="options of an attention"):
        apply(model, {"blocks.0.attn": {"kernel_size": 3, "kernel_bias": 1}})
