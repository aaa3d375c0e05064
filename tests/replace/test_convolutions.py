"""Convolutions of models become ATConv that computes the same at first, and learns to route."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import atconv
from atconv.replace.convolutions import ATConvConvolution
from support.helpers import assert_close, randomize

Make = Callable[[], tuple[nn.Module, Tensor]]


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ready(model: nn.Module) -> nn.Module:
    """In eval mode, in float64, with statistics and kernels that are not those of the start."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    return model.double().eval()


DEPTHWISE: dict[str, Make] = {
    "ConvNeXt": lambda: (
        timm.create_model(
            "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=4, ls_init_value=1.0
        ),
        images(),
    ),
    "MobileNetV3": lambda: (timm.create_model("mobilenetv3_small_050", num_classes=4), images()),
    "torchvision MobileNetV2": lambda: (
        torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=4),
        images(),
    ),
    "AttNet": lambda: (
        timm.create_model("attnet_xxs", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=4),
        images(),
    ),
}


@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_convolutions_become_atconv_that_computes_the_same(name: str) -> None:
    model, x = DEPTHWISE[name]()
    model = ready(model)
    expected = model(x)
    report = atconv.replace_convolution(model)
    assert report.replaced
    assert all(replacement.copied for replacement in report.replaced)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.groups == 1 for conv in convolutions)
    assert_close(model(x), expected, 1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@torch.no_grad()
def test_a_replaced_model_is_still_scripted_and_traced() -> None:
    model, x = DEPTHWISE["ConvNeXt"]()
    atconv.replace_convolution(ready(model))
    for each in (torch.jit.script(model), torch.fx.symbolic_trace(model)):
        assert_close(each(x), model(x), 1e-12)


@pytest.mark.parametrize("name", DEPTHWISE)
def test_they_learn_to_route(name: str) -> None:
    model, x = DEPTHWISE[name]()
    model = ready(model)
    expected = model(x)
    atconv.replace_convolution(model)
    mixers = [module for module in model.modules() if isinstance(module, ATConvConvolution)]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):  # the generator learns first: while it is zero, nothing reaches the context
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert all(mixer.context_proj.weight.grad.abs().max() > 0 for mixer in mixers)
    assert not torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("stride", "dilation", "padding_mode", "kernel_size", "bias"),
    [(1, 1, "zeros", 3, True), (2, 1, "reflect", 5, False), ((1, 2), 2, "circular", (3, 5), True)],
)
def test_the_options_of_a_convolution_are_taken_over(
    stride: int, dilation: int, padding_mode: str, kernel_size: int, bias: bool
) -> None:
    sizes = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
    conv = nn.Conv2d(
        6, 6, sizes, stride, tuple(dilation * (k // 2) for k in sizes), dilation, 6, bias, padding_mode
    )
    model = nn.Sequential(conv).double()
    x = torch.randn(2, 6, 11, 12, dtype=torch.float64)
    expected = model(x)
    atconv.replace_convolution(model)
    assert_close(model(x), expected, 1e-12)


def test_a_dense_convolution_that_is_separable_stays_the_same_function() -> None:
    conv = nn.Conv2d(5, 7, 3, stride=2, padding=1).double()
    with torch.no_grad():
        outer = torch.einsum("oi,ikl->oikl", torch.randn(7, 5), torch.randn(5, 3, 3))
        conv.weight.copy_(outer)
    model, x = nn.Sequential(conv), torch.randn(2, 5, 8, 9, dtype=torch.float64)
    expected = model(x)
    atconv.replace_convolution(model, where=lambda name, module: True)
    assert_close(model(x), expected, 1e-6)


def test_a_dense_convolution_starts_at_the_nearest_separable_one() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False).double()
    model = nn.Sequential(conv)
    atconv.replace_convolution(model, where=lambda name, module: True)
    mixer = model[0]
    kernels = mixer.kernel_bias - mixer.kernel_bias.mean(1, keepdim=True) / 2
    near = torch.einsum("oi,ik->oik", mixer.proj.weight.flatten(1), kernels)
    missed = (conv.weight.flatten(2) - near).square().sum((0, 2))
    singular = torch.linalg.svdvals(conv.weight.flatten(2).transpose(0, 1))
    torch.testing.assert_close(missed, singular[:, 1:].square().sum(1), rtol=1e-4, atol=0)


def start_of(mixer: ATConvConvolution) -> Tensor:
    """The kernels at the start, of each channel: in K²."""
    kernels = mixer.kernel_bias - mixer.kernel_bias.mean(1, keepdim=True) / 2
    return kernels.repeat_interleave(mixer.in_channels // len(kernels), 0)


@pytest.mark.parametrize("kernel_groups", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 4])
@torch.no_grad()
def test_the_report_says_how_near_the_start_is(kernel_groups: int, groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=groups).double()
    model, every_one = nn.Sequential(conv), lambda name, module: True
    report = atconv.replace_convolution(model, every_one, kernel_groups=kernel_groups, context_bins=2)
    (replacement,), mixer = report.replaced, model[0]
    near = start_of(mixer)
    if groups == 1:
        near = torch.einsum("oi,ik->oik", mixer.proj.weight.flatten(1), near)
    weight = conv.weight.flatten(2) if groups == 1 else conv.weight.flatten(1)
    missed = (weight - near).square().sum() / weight.square().sum()
    assert replacement.explained == pytest.approx(1 - float(missed), abs=1e-6)
    assert replacement.exact == replacement.copied == (groups == kernel_groups == 4)
    assert ("exact" if replacement.exact else f"{replacement.explained:.1%}") in str(report)
    assert mixer.kernel_gen.weight.shape == (9, 2)
    if groups == 4:  # no other kernels of these groups are nearer
        moved = near + torch.randn(20, kernel_groups, 9).repeat_interleave(4 // kernel_groups, 1)
        assert (weight - moved).square().sum((1, 2)).min() > (weight - near).square().sum()


def test_separable_and_empty_convolutions_start_exactly_and_meta_ones_are_not_measured() -> None:
    separable, empty = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
    nn.init.zeros_(empty.weight)
    separable.weight.data = torch.einsum("oi,ik->oik", torch.randn(6, 4), torch.randn(4, 9)).view(6, 4, 3, 3)
    report = atconv.replace_convolution(nn.Sequential(separable, empty), lambda name, module: True)
    assert [replacement.exact for replacement in report.replaced] == [True, True]
    meta = [nn.Conv2d(4, 4, 3, padding=1, groups=groups, device="meta") for groups in (1, 4)]
    report = atconv.replace_convolution(nn.Sequential(*meta), lambda name, module: True)
    assert [(row.explained, row.exact) for row in report.replaced] == [(None, False), (1.0, True)]


def test_every_nth_and_some_are_chosen_among_those_of_the_default() -> None:
    layers = [nn.Conv2d(4, 4, 3, padding=1, groups=groups) for groups in (1, 4, 4, 1, 4)]
    for options, chosen in [({"every": 2}, ["2"]), ({"blocks": [0, 2]}, ["1", "4"])]:
        report = atconv.replace_convolution(nn.Sequential(*layers), **options)
        assert [replacement.name for replacement in report.replaced] == chosen
    everything = lambda name, module: True  # noqa: E731
    report = atconv.replace_convolution(nn.Sequential(*layers), everything, every=2)
    assert [replacement.name for replacement in report.replaced] == ["1", "3"]
    with pytest.raises(ValueError, match=r"blocks must lie in 0…2, got \[3\]"):
        atconv.replace_convolution(nn.Sequential(*layers), blocks=[3])
    with pytest.raises(ValueError, match="every must be at least 1"):
        atconv.replace_convolution(nn.Sequential(*layers), every=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_groups": 3}, ValueError, "1: .* kernel_groups must divide 4 channels, got 3"),
        ({"kernel_groups": 2.0}, TypeError, "0: .* kernel_groups takes whole numbers, got 2.0"),
        ({"context_bins": 0}, ValueError, "0: .* context_bins must be at least 1, got 0"),
    ],
)
def test_an_option_that_does_not_fit_names_the_convolution(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = nn.Sequential(*(nn.Conv2d(c, c, 3, padding=1, groups=c) for c in (6, 4)))
    with pytest.raises(error, match=f"nothing was replaced. {message}"):
        atconv.replace_convolution(model, **options)
    assert all(type(layer) is nn.Conv2d for layer in model)


def test_a_resnet_is_replaced_where_one_asks_and_the_report_says_what_changed() -> None:
    model = ready(torchvision.models.resnet18(num_classes=3))
    before = sum(parameter.numel() for parameter in model.parameters())
    report = atconv.replace_convolution(model, where=lambda name, module: name.startswith("layer3"))
    assert [replacement.name for replacement in report.replaced] == [
        "layer3.0.conv1", "layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2"
    ]  # fmt: skip
    assert report.parameters == (before, sum(parameter.numel() for parameter in model.parameters()))
    assert report.parameters[1] < before
    assert report.macs[1] < report.macs[0]
    assert "conv1" in report.kept
    assert "the nearest separable or shared kernel, another function, in layer3.0.conv1" in str(report)
    model.train()(images()).sum().backward()


def test_without_depthwise_convolutions_all_but_the_first_are_chosen() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    report = atconv.replace_convolution(model)
    assert report.kept == {"conv1": "not chosen"}
    assert len(report.replaced) == 16


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("axes", [1, 3])
@torch.no_grad()
def test_sequences_and_volumes_are_replaced_too(axes: int, groups: int) -> None:
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    conv = kind(6, 6, 3, stride=2, padding=1, groups=groups).double()
    if groups == 1:
        kernels = torch.randn(6, 3**axes, dtype=torch.float64)
        conv.weight.copy_(
            torch.einsum("oi,ik->oik", conv.weight.flatten(2)[..., 0], kernels).view_as(conv.weight)
        )
    model, x = nn.Sequential(conv), torch.randn(2, 6, *(9, 7, 8)[:axes], dtype=torch.float64)
    expected = model(x)
    report = atconv.replace_convolution(model, where=lambda name, module: True)
    assert report.replaced[0].exact
    assert_close(model(x), expected, 1e-6 if groups == 1 else 1e-12)
    opened = nn.Sequential(kind(6, 6, 3, stride=2, padding=1, groups=groups)).double()
    atconv.replace.apply(opened, atconv.replace.describe(model.state_dict()))
    opened.load_state_dict(model.state_dict())
    assert torch.equal(opened(x), model(x))


def test_a_layer_that_makes_the_output_is_spared() -> None:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)]
    report = atconv.replace_convolution(nn.Sequential(*layers, nn.Sigmoid()))
    assert report.kept == {"0": "not chosen", "2": "not chosen"}
    report = atconv.replace_convolution(nn.Sequential(*layers, nn.BatchNorm2d(2)))
    assert report.kept == {"0": "not chosen"}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0])
@torch.no_grad()
def test_the_start_is_measured_as_it_is_stored(dtype: torch.dtype, tolerance: float, offset: float) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    conv.weight += offset
    model, weight = nn.Sequential(conv.to(dtype)), conv.weight.double()[:, 0]
    (row,) = atconv.replace_convolution(model).replaced
    stored = model[0].kernels(torch.zeros(1, 16, 5, 5, dtype=dtype))[0].double()
    missed = float((stored - weight).square().sum() / weight.square().sum())
    assert 0 < missed < tolerance**2
    assert row.explained == pytest.approx(1 - missed, abs=1e-12)
    assert row.exact == (missed <= torch.finfo(dtype).eps ** 2)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "number"), [(torch.half, 4e4), (torch.half, 6e4), (torch.float32, math.nan)]
)
@torch.no_grad()
def test_a_start_that_is_not_finite_is_refused(groups: int, dtype: torch.dtype, number: float) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=groups).to(dtype))
    model[0].weight.fill_(number)
    with pytest.raises(ValueError, match=r"nothing was replaced\. 0: .* not finite in torch\..*: give a"):
        atconv.replace_convolution(model, where=lambda name, module: True)
    assert type(model[0]) is nn.Conv2d


def test_shared_and_hooked_weights_are_kept() -> None:
    layers = [nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(4)]
    layers[1].weight = layers[0].weight
    layers[2].weight.register_hook(lambda gradient: gradient)
    report = atconv.replace_convolution(nn.Sequential(*layers))
    shared = "another layer has the same weights"
    assert report.kept == {"0": shared, "1": shared, "2": "its weights have hooks"}


def test_mixers_of_the_user_are_not_taken_for_replaced_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), atconv.ATConv2d(4, kernel_bias=True))
    model.add_module("mixer", atconv.ATConvTokens(4))
    assert atconv.replace.describe(model) == atconv.replace.describe(model.state_dict()) == {}
    atconv.replace_convolution(model, where=lambda name, module: True)
    assert atconv.replace.describe(model) == {"0": {"convolution": True}}
    assert atconv.replace.describe(model.state_dict()) == {"0": {"convolution": True}}


def test_a_unet_of_diffusers_and_a_decoder_run_with_atconv() -> None:
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    in_blocks = lambda name, module: "resnets" in name and module.kernel_size == (3, 3)  # noqa: E731
    report = atconv.replace_convolution(unet, in_blocks)
    assert len(report.replaced) == 16
    assert unet(torch.randn(1, 3, 8, 8), 3).sample.shape == (1, 3, 8, 8)
    smp = pytest.importorskip("segmentation_models_pytorch")
    segmenter = smp.Unet("resnet18", encoder_weights=None, classes=2).eval()
    in_decoder = lambda name, module: name.startswith("decoder")  # noqa: E731
    report = atconv.replace_convolution(segmenter, in_decoder, torch.randn(1, 3, 32, 32))
    assert report.macs is not None
    assert segmenter(torch.randn(1, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_what_cannot_be_replaced_is_named_and_nothing_is_touched() -> None:
    hooked = nn.Conv2d(4, 4, 3, padding=1)
    hooked.register_forward_hook(lambda *_: None)
    layers = {
        "even": (nn.Conv2d(4, 4, 4, padding=2), "is even"),
        "valid": (nn.Conv2d(4, 4, 3), "does not keep the center of its kernel"),
        "grouped": (nn.Conv2d(4, 4, 3, padding=1, groups=2), "has 2 groups"),
        "widened": (nn.Conv2d(4, 8, 3, padding=1, groups=4), "makes 2 maps of each channel"),
        "hooked": (hooked, "has hooks"),
    }
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    for name, (layer, _) in layers.items():
        model.add_module(name, layer)
    state = {name: id(module) for name, module in model.named_modules()}
    for name, (_, reason) in layers.items():
        with pytest.raises(ValueError, match=f"nothing was replaced. {name}: .*{reason}"):
            atconv.replace_convolution(model, where=lambda other, module, name=name: other in (name, "0"))
    assert {name: id(module) for name, module in model.named_modules()} == state
    with pytest.raises(ValueError, match="none of the 6 convolutions was chosen"):
        atconv.replace_convolution(model, where=lambda name, module: False)
    with pytest.raises(ValueError, match="Linear has no convolution larger than 1×1"):
        atconv.replace_convolution(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="replace_convolution takes a model"):
        atconv.replace_convolution("resnet18")  # type: ignore[arg-type]
    assert set(atconv.replace_convolution(model).kept) == set(layers)


def test_every_reason_for_replacing_nothing_is_named() -> None:
    class Grouped(nn.Sequential):
        pass

    conv1 = nn.Conv2d(3, 8, 7, 2, 3)
    model = Grouped(conv1, nn.Conv2d(8, 8, 3, 1, 1, groups=2), nn.Conv2d(8, 8, 3, 1, 1, groups=2))
    with pytest.raises(ValueError, match=r"0: it sees the image .*; 1, 2: it has 2 groups: ATConv takes 1"):
        atconv.replace_convolution(model)
    for alone in (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)):
        with pytest.raises(ValueError, match=r"nothing was replaced\. Conv2d: it is the model itself"):
            atconv.replace_convolution(alone)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    atconv.replace_convolution(model)
    with pytest.raises(ValueError, match=r"1: it is ATConv already"):
        atconv.replace_convolution(model)


@pytest.mark.parametrize(
    "options",
    [{"nonsense": 1}, None, {"kernel_size": 3}, {}, {"convolution": True, "context_bins": True}],
)
def test_options_that_are_not_of_a_convolution_are_rejected(options: object) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8))
    with pytest.raises(ValueError, match=r"the options of a convolution are \{'convolution': True\}, got"):
        atconv.replace.apply(model, {"0": options})
    assert type(model[0]) is nn.Conv2d


def test_a_model_that_fails_with_atconv_in_it_is_put_back() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.conv.weight.mean()

    model = Picky()
    with pytest.raises(ValueError, match=r"nothing was replaced\. Picky does not run with ATConv in it"):
        atconv.replace_convolution(model, example=torch.randn(1, 3, 5, 5))
    assert type(model.conv) is nn.Conv2d


@pytest.mark.parametrize("options", [{}, {"kernel_groups": 2, "context_bins": 1}])
@torch.no_grad()
def test_what_was_replaced_is_saved_and_opened(tmp_path: Path, options: dict[str, Any]) -> None:
    saved = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=4).eval()
    atconv.replace_convolution(saved, **options)
    assert all(row == {"convolution": True} | options for row in atconv.replace.describe(saved).values())
    randomize(saved)
    x = images().float()
    timm.models.save_for_hf(saved, str(tmp_path))
    opened = atconv.replace.from_pretrained(timm.create_model, f"local-dir:{tmp_path}").eval()
    assert torch.equal(opened(x), saved(x))
    plain = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=4).eval()
    atconv.replace.apply(plain, atconv.replace.describe(saved.state_dict()))
    plain.load_state_dict(saved.state_dict())
    assert torch.equal(plain(x), saved(x))
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    with pytest.raises(ValueError, match=r"options of an attention are such as .*convolution"):
        atconv.replace.apply(vit, {"blocks.0.attn": {"convolution": True}})


@torch.no_grad()
def test_attention_and_convolutions_of_one_model_are_saved_together(tmp_path: Path) -> None:
    model = timm.create_model("coatnet_pico_rw_224", img_size=32, num_classes=4).eval()
    atconv.replace_attention(model)
    atconv.replace_convolution(model, where=lambda name, module: getattr(module, "groups", 1) > 1)
    description = atconv.replace.describe(model)
    assert {tuple(options) for options in description.values()} == {("kernel_size",), ("convolution",)}
    timm.models.save_for_hf(model, str(tmp_path))
    opened = atconv.replace.from_pretrained(timm.create_model, f"local-dir:{tmp_path}", img_size=32).eval()
    assert atconv.replace.describe(opened) == description
