from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import atconv
from atconv.models.attnet import VARIANTS, AttNet, ConvGLU
from atconv.models.release import to_attnet
from atconv.ops.gated_product import gated_product
from support.helpers import assert_close, reference, release_shapes, release_state, tiny_attnet, under

# Parameters, and multiply-adds at 224 in 10⁹, of the published architectures with the context pooled first.
SIZES = {
    "attnet_xxs": (2_853_556, 0.5011),
    "attnet_xs": (5_554_902, 0.9427),
    "attnet_s": (7_681_316, 1.2424),
    "attnet_t1": (13_714_900, 2.2554),
    "attnet_t2": (27_010_782, 4.7333),
    "attnet_t3": (49_175_682, 8.7021),
    "attnet_t4": (87_320_214, 15.5485),
}
REFERENCES = ["attnet_norm_scale", "attnet_plain"]


def without_storage(name: str) -> AttNet:
    with torch.device("meta"):
        return timm.create_model(name)


def depth_of(name: str) -> tuple[int, ...]:
    """Where a parameter acts: larger is later. The stem is first and the head last."""
    parts = name.split(".")
    if parts[0] != "stages":
        return (-1,) if parts[0] == "stem" else (99,)
    return (int(parts[1]), int(parts[3]) + 1 if parts[2] == "blocks" else 0)


def blocks_of(model: AttNet) -> list[nn.Module]:
    return [block for stage in model.stages for block in stage.blocks]


# The published architectures and their numbers.


def test_all_variants_are_registered() -> None:
    assert sorted(timm.list_models("attnet_*")) == sorted(SIZES) == sorted(VARIANTS)


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    model = without_storage(name)
    parameters, giga = SIZES[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.macs(224, 224) / 1e9 == pytest.approx(giga, abs=5e-5)


@pytest.mark.parametrize("name", SIZES)
def test_state_dict_is_the_renamed_one_of_the_release(name: str) -> None:
    ours = {key: tuple(tensor.shape) for key, tensor in without_storage(name).state_dict().items()}
    release = {key: torch.empty(shape, device="meta") for key, shape in release_shapes()[name].items()}
    assert {key: tuple(tensor.shape) for key, tensor in to_attnet(release).items()} == ours
    assert len(ours) == len(release) + 2 * sum(name.endswith(".fc1.weight") for name in release)


def reference_model(name: str, folder: Path) -> AttNet:
    tensors, metadata = reference(name)
    config = metadata["config"]
    model = timm.create_model(
        "attnet_xxs",
        num_classes=config["num_classes"],
        depths=config["depths"],
        dims=config["dims"],
        mlp_ratios=config["exp_rates"],
        mixer_args=[{"kernel_size": size} for size in config["kernel_sizes"]],
        glu_norm=all(config["glu_norm"]),
        ls_init_value=1e-6 if config["use_layer_scale"] else None,
    )
    save_file(under("weights.", tensors), folder / "release.safetensors")
    atconv.load_release(model, folder / "release.safetensors")
    return model.eval()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", REFERENCES)
@torch.no_grad()
def test_reference_stages_and_logits(name: str, memory_format: torch.memory_format, tmp_path: Path) -> None:
    model, (tensors, metadata) = reference_model(name, tmp_path), reference(name)
    for i in range(len(metadata["sizes"])):
        expected = under(f"{i}.", tensors)
        x = expected["input"].contiguous(memory_format=memory_format)
        final, stages = model.forward_intermediates(x)
        for number, stage in enumerate(stages):
            assert_close(stage, expected[f"stage{number}"], 1e-5)
        assert_close(model.forward_head(final), expected["logits"], 1e-5)
        assert_close(model(x), expected["logits"], 1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"stem_stride": 1},
        {"num_classes": 0},
        {"glu_conv": False},
        {"mixer_args": [{"kernel_size": size} for size in (3, 5, 7, 3)]},
    ],
)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (45, 70)])
@torch.no_grad()
def test_macs_equal_the_count_of_torch(kwargs: dict, height: int, width: int) -> None:
    model = tiny_attnet(depths=(2, 1, 1, 1), **kwargs)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, height, width))
    assert counter.get_total_flops() == 2 * model.macs(height, width)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 160)])
@torch.no_grad()
def test_macs_of_a_full_model_equal_the_count_of_torch(height: int, width: int) -> None:
    model = timm.create_model("attnet_xxs").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, height, width))
    assert counter.get_total_flops() == 2 * model.macs(height, width)


# Features.


@pytest.mark.parametrize("stem_stride", [4, 2, 1])
@torch.no_grad()
def test_feature_model_gives_the_stages_at_the_strides_it_names(stem_stride: int) -> None:
    torch.manual_seed(1)
    features = timm.create_model(
        "attnet_xxs", features_only=True, out_indices=(1, 3), stem_stride=stem_stride
    ).eval()
    assert features.feature_info.reduction() == [stem_stride * 2, stem_stride * 8]
    assert features.feature_info.channels() == [64, 240]
    outputs = features(torch.randn(1, 3, 64, 96))
    for output, channels, stride in zip(outputs, [64, 240], features.feature_info.reduction(), strict=True):
        assert output.shape == (1, channels, 64 // stride, 96 // stride)


@torch.no_grad()
def test_feature_model_computes_what_the_classifier_computes() -> None:
    model = tiny_attnet()
    features = timm.create_model(
        "attnet_xxs", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), features_only=True
    ).eval()
    renamed = {name.replace("stages.", "stages_"): t for name, t in model.state_dict().items()}
    features.load_state_dict({name: t for name, t in renamed.items() if not name.startswith("head")})
    x = torch.randn(2, 3, 64, 64)
    for one, other in zip(features(x), model.forward_intermediates(x)[1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("indices", "stages"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-1], [3]), ([1], [1])]
)
@torch.no_grad()
def test_intermediates_are_the_stages_asked_for(indices: int | list[int] | None, stages: list[int]) -> None:
    model, x, expected = tiny_attnet(), torch.randn(1, 3, 64, 64), []
    y = model.stem(x)
    for stage in model.stages:
        y = stage(y)
        expected.append(y)
    final, intermediates = model.forward_intermediates(x, indices)
    only = model.forward_intermediates(x, indices, intermediates_only=True)
    assert torch.equal(final, model.forward_features(x))
    for found in (intermediates, only):
        assert len(found) == len(stages)
        assert all(torch.equal(one, expected[i]) for one, i in zip(found, stages, strict=True))


@pytest.mark.parametrize("stop_early", [True, False])
@torch.no_grad()
def test_stopping_early_runs_no_later_stage(stop_early: bool) -> None:
    model, ran = tiny_attnet(), []
    for i, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda *_, i=i: ran.append(i))
    x = torch.randn(1, 3, 64, 64)
    (found,) = model.forward_intermediates(x, [1], stop_early=stop_early, intermediates_only=True)
    assert found.shape == (1, 16, 8, 8)
    assert ran == ([0, 1] if stop_early else [0, 1, 2, 3])


def test_other_output_formats_are_rejected() -> None:
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        tiny_attnet().forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC")


@torch.no_grad()
def test_pruned_model_still_gives_its_stage() -> None:
    model, x = tiny_attnet(), torch.randn(1, 3, 64, 64)
    (expected,) = model.forward_intermediates(x, [1], intermediates_only=True)
    assert model.prune_intermediate_layers([1]) == [1]
    assert len(model.stages) == 2
    assert torch.equal(model.forward_features(x), expected)
    assert model.num_features == 16


@torch.no_grad()
def test_forward_is_features_then_head() -> None:
    model, x = tiny_attnet(), torch.randn(2, 3, 64, 48)
    features = model.forward_features(x)
    assert features.shape == (2, 32, 2, 2)
    assert torch.equal(model.forward_head(features), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert_close(model.get_classifier()(pooled), model(x), 1e-6)
    # Features so small that the norm's eps counts.
    small = 0.01 * features
    mean = small.mean((2, 3))
    norm = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    expected = norm * model.head.norm.weight + model.head.norm.bias
    assert_close(model.forward_head(small, pre_logits=True), expected, 1e-5)


# Head and input.


@torch.no_grad()
def test_classifier_is_replaced() -> None:
    model, x = tiny_attnet(), torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7)
    assert not model.get_classifier().bias.any()
    assert 0.005 < model.get_classifier().weight.std() < 0.05
    model.reset_classifier(0)
    assert_close(model(x), pooled, 1e-6)
    model.reset_classifier(0, "")
    assert model(x).shape[2:] == features.shape[2:]


@torch.no_grad()
def test_without_classes_it_gives_pooled_features() -> None:
    model, x = tiny_attnet(num_classes=0), torch.randn(2, 3, 32, 32)
    assert model(x).shape == (2, 32)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert model.num_classes == 0


@pytest.mark.parametrize("in_chans", [1, 4])
@torch.no_grad()
def test_images_of_any_channels(in_chans: int) -> None:
    model = tiny_attnet(in_chans=in_chans)
    assert model(torch.randn(2, in_chans, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_maps_on_the_cpu_are_channels_last_whatever_channels_the_image_has(in_chans: int) -> None:
    model = timm.create_model("attnet_xxs", in_chans=in_chans, num_classes=0)
    maps = model.forward_intermediates(torch.rand(2, in_chans, 64, 64), intermediates_only=True)
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in maps)


@pytest.mark.parametrize("stem_stride", [4, 2, 1])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 50), (1, 1)])
@torch.no_grad()
def test_every_strided_convolution_rounds_up(stem_stride: int, height: int, width: int) -> None:
    model, stride = tiny_attnet(stem_stride=stem_stride), stem_stride
    for features in model.forward_intermediates(torch.randn(1, 3, height, width), intermediates_only=True):
        assert features.shape[2:] == (-(-height // stride), -(-width // stride))
        stride *= 2


@pytest.mark.parametrize("stem_stride", [0, 3, 8])
def test_other_stem_strides_are_rejected(stem_stride: int) -> None:
    with pytest.raises(ValueError, match=f"stem_stride must be 4, 2 or 1, got {stem_stride}"):
        timm.create_model("attnet_xxs", stem_stride=stem_stride)


@pytest.mark.parametrize("name", ["depths", "dims", "mlp_ratios", "token_mixer", "mixer_args"])
def test_other_than_four_stages_are_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=rf"4 stages: {name} must have 4 entries, got .3, 3, 3."):
        timm.create_model("attnet_xxs", **{name: (3, 3, 3)})


# Training.


@torch.no_grad()
def test_initial_weights_follow_the_paper() -> None:
    model = timm.create_model("attnet_t1")
    modules = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = torch.cat([m.weight.flatten() for m in modules])
    assert weights.std() == pytest.approx(0.02, rel=1e-2)
    assert weights.mean().abs() < 1e-4
    assert not any(m.bias.any() for m in modules if m.bias is not None)
    for block in blocks_of(model):
        assert not block.token_mixer.alpha.any()
        assert torch.equal(block.ls1.gamma, torch.full_like(block.ls1.gamma, 1e-6))


def test_drop_path_rises_linearly_from_zero() -> None:
    model = timm.create_model("attnet_xxs", drop_path_rate=0.3)
    for name in ("drop_path1", "drop_path2"):
        rates = [getattr(getattr(block, name), "drop_prob", 0.0) for block in blocks_of(model)]
        assert rates == pytest.approx([0.3 * i / 9 for i in range(10)])
    assert not any("DropPath" in type(m).__name__ for m in tiny_attnet().modules())


def gradients(model: AttNet, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_every_parameter_learns_and_checkpointing_gives_the_same_gradients() -> None:
    model = tiny_attnet(glu_norm=True, ls_init_value=0.1).train()
    x = torch.randn(4, 3, 64, 64)
    plain = gradients(copy.deepcopy(model), x)
    assert all(grad.isfinite().all() and grad.any() for grad in plain)
    model.set_grad_checkpointing()
    calls: list[int] = []
    model.stages[0].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for actual, expected in zip(gradients(model, x), plain, strict=True):
        assert_close(actual, expected, 1e-5)
    assert len(calls) == 2, "a checkpointed block runs again in the backward pass"
    model.set_grad_checkpointing(False)
    calls.clear()
    gradients(model, x)
    assert len(calls) == 1


def test_layer_decay_rises_with_depth() -> None:
    model = tiny_attnet(depths=(1, 2, 1, 1), ls_init_value=0.1)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales: dict[str, float] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in scales, "in two groups"
            scales[names[id(parameter)]] = group["lr_scale"]
    assert scales.keys() == dict(model.named_parameters()).keys()
    ordered = [scales[name] for name in sorted(scales, key=depth_of)]
    assert ordered == sorted(ordered)
    by_block = [
        scales[f"stages.{s}.blocks.{b}.token_mixer.alpha"]
        for s, b in [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
    ]
    assert by_block == pytest.approx([0.5**i for i in (5, 4, 3, 2, 1)])
    assert scales["head.fc.weight"] == 1
    assert scales["stem.conv1.weight"] == min(scales.values())


@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_only_matrices_and_kernels_decay(layer_decay: float | None) -> None:
    model = tiny_attnet(glu_norm=True, ls_init_value=0.1)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=layer_decay)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.05 if parameter.ndim >= 2 else 0), name


def test_every_alpha_is_named_as_free_of_decay() -> None:
    model = tiny_attnet()
    # Decay of 1-D tensors is on here, so that only the model's own list exempts anything.
    groups = timm.optim.param_groups_weight_decay(model, 0.05, list(model.no_weight_decay()))
    exempt = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    alphas = [p for name, p in model.named_parameters() if name.endswith("alpha")]
    assert len(alphas) == 4
    assert all(id(alpha) in exempt for alpha in alphas)


@pytest.mark.parametrize("coarse", [True, False])
def test_groups_cover_every_parameter(coarse: bool) -> None:
    model = tiny_attnet()
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
    grouped = [name for names in groups.values() for name in names]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())


# Life with timm.


@pytest.mark.parametrize("name", SIZES)
def test_pretrained_cfg_is_complete(name: str) -> None:
    model = without_storage(name)
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name
    assert (cfg["input_size"], cfg["crop_pct"], cfg["interpolation"]) == ((3, 224, 224), 0.875, "bicubic")
    assert cfg["mean"] == (0.485, 0.456, 0.406)
    assert cfg["std"] == (0.229, 0.224, 0.225)
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_classifier().out_features == cfg["num_classes"] == 1000


@pytest.mark.parametrize("name", SIZES)
def test_pretrained_says_where_weights_are(name: str) -> None:
    with pytest.raises(RuntimeError, match="pretrained=True cannot download weights") as raised:
        timm.create_model(name, pretrained=True)
    for part in (
        f"timm.create_model('{name}')",
        "arXiv 2510.20092",
        "https://github.com/",
        "atconv.load_release",
    ):
        assert part in str(raised.value)


@torch.no_grad()
def test_weights_survive_a_file(tmp_path: Path) -> None:
    model, x = tiny_attnet(), torch.randn(1, 3, 32, 32)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = tiny_attnet()
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(x), model(x))


@torch.no_grad()
def test_folder_written_by_timm_opens_by_name(tmp_path: Path) -> None:
    model = tiny_attnet()
    args = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    timm.models.save_for_hf(model, tmp_path, model_config={"num_classes": 5}, model_args=args)
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(opened(x), model(x))


@pytest.mark.usefixtures("reset_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@torch.no_grad()
def test_compiled_without_graph_break_equals_eager(backend: str) -> None:
    model, x = tiny_attnet(), torch.randn(2, 3, 64, 48)
    assert_close(torch.compile(model, fullgraph=True, backend=backend)(x), model(x), 1e-5)


@pytest.mark.usefixtures("reset_compiler")
@torch.no_grad()
@pytest.mark.slow
def test_one_compilation_serves_sizes_and_large_batches() -> None:
    model = tiny_attnet(glu_norm=True)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(torch.randn(17, 3, 64, 96))
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch, height, width in ((33, 40, 36), (16, 128, 64), (20, 48, 48)):
            x = torch.randn(batch, 3, height, width)
            assert_close(compiled(x), model(x), 1e-5)


@torch.no_grad()
def test_release_weights_keep_every_parameter_in_its_place(tmp_path: Path) -> None:
    state = release_state("attnet_xxs")
    save_file(state, tmp_path / "release.safetensors")
    model = timm.create_model("attnet_xxs")
    atconv.load_release(model, tmp_path / "release.safetensors")
    mixer, theirs = model.stages[2].blocks[3].token_mixer, under("stages.2.3.token_mixer.", state)
    assert torch.equal(mixer.context_proj.weight, theirs["kernel_proj.weight"][:, :, 0, 0])
    assert torch.equal(mixer.value_proj.weight, theirs["x_proj.weight"])
    assert torch.equal(mixer.proj.weight, theirs["proj.weight"])
    assert torch.equal(mixer.alpha, theirs["difference_control"])
    assert torch.equal(model.stages[1].downsample[1].running_var, state["downsample_layers.1.1.running_var"])
    assert torch.equal(model.stem.conv2.weight, state["downsample_layers.0.2.0.weight"])
    assert torch.equal(model.head.norm.weight, state["norm.weight"])
    assert torch.equal(model.head.fc.weight, state["head.weight"])


@pytest.mark.parametrize("name", ["attnet_xxs", "attnet_t1"])
def test_models_are_built_on_a_device_and_in_a_dtype(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16, torch.int64}  # BatchNorm counts batches


BLOCK_LAYERS = [
    "norm1",
    "token_mixer",
    "token_mixer.context_proj",
    "token_mixer.act",
    "token_mixer.kernel_gen",
    "token_mixer.value_proj",
    "token_mixer.proj",
    "ls1",
    "norm2",
    "channel_mixer",
    "channel_mixer.gate_proj",
    "channel_mixer.value_proj",
    "channel_mixer.dwconv",
    "channel_mixer.act",
    "channel_mixer.norm",
    "channel_mixer.proj",
    "ls2",
]


@pytest.mark.parametrize("layer", BLOCK_LAYERS)
@torch.no_grad()
def test_a_hook_on_every_layer_of_a_block_is_called_and_can_change_the_output(layer: str) -> None:
    model = tiny_attnet(glu_norm=True, ls_init_value=0.5)
    block, x = model.stages[1].blocks[0].double(), torch.randn(2, 16, 6, 5, dtype=torch.float64)
    expected, outputs = block(x), []
    handle = block.get_submodule(layer).register_forward_hook(lambda _, args, output: outputs.append(output))
    assert_close(block(x), expected, 1e-12)
    assert len(outputs) == 1
    handle.remove()
    block.get_submodule(layer).register_forward_hook(lambda _, args, output: output + 1)
    assert not torch.allclose(block(x), expected)


def test_the_list_of_a_blocks_layers_is_complete() -> None:
    block = tiny_attnet(glu_norm=True, ls_init_value=0.5).stages[0].blocks[0]
    layers = {name for name, _ in block.named_modules() if name and "drop_path" not in name}
    assert layers == set(BLOCK_LAYERS)


# The channel mixer: the norm behind its last projection, and the gate's own gradient.


def plain_glu(glu: ConvGLU, x: Tensor) -> Tensor:
    """The channel mixer as its definition reads."""
    product = F.gelu(glu.dwconv(glu.gate_proj(x))) * glu.value_proj(x)
    size = (product.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return glu.proj(product / size * glu.norm.weight[:, None, None])


def norm_glu() -> ConvGLU:
    torch.manual_seed(0)
    glu = ConvGLU(6, 4, norm=True).double()
    for parameter in glu.parameters():
        nn.init.normal_(parameter, std=0.5)
    return glu


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_channel_mixer_and_its_gradients_are_those_of_its_definition(
    memory_format: torch.memory_format,
) -> None:
    glu = norm_glu()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    cotangent = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    inputs = [x, *glu.parameters()]
    assert_close(glu(x), plain_glu(glu, x), 1e-12)
    with torch.no_grad():
        assert_close(glu(x), plain_glu(glu, x), 1e-12)
    expected = torch.autograd.grad(plain_glu(glu, x), inputs, cotangent)
    for ours, theirs in zip(torch.autograd.grad(glu(x), inputs, cotangent), expected, strict=True):
        assert_close(ours, theirs, 1e-12)


def test_the_gates_gradient_is_right_twice() -> None:
    torch.manual_seed(0)
    gate, value = (torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(gated_product, (gate, value, 1e-6))
    assert torch.autograd.gradgradcheck(gated_product, (gate, value, 1e-6))


def test_the_gate_leaves_its_inputs_as_they_are() -> None:
    gate, value = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    before = gate.clone(), value.clone()
    with torch.no_grad():
        gated_product(gate, value, 1e-6)
    assert torch.equal(gate, before[0])
    assert torch.equal(value, before[1])


def test_gradients_of_single_samples() -> None:
    glu, x = norm_glu(), torch.randn(3, 6, 4, 4, dtype=torch.float64)
    weights = dict(glu.named_parameters())

    def loss(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(glu, weights, one[None]).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for i in range(len(x)):
        for name, expected in torch.func.grad(loss)(weights, x[i]).items():
            assert_close(found[name][i], expected, 1e-12)


def test_forward_mode_equals_backward_mode() -> None:
    glu, x = norm_glu(), torch.randn(2, 6, 4, 4, dtype=torch.float64)
    tangent, cotangent = torch.randn_like(x), torch.randn_like(x)
    _, moved = torch.func.jvp(glu, (x,), (tangent,))
    _, pull = torch.func.vjp(glu, x)
    assert_close((moved * cotangent).sum(), (pull(cotangent)[0] * tangent).sum(), 1e-12)


@pytest.mark.parametrize("layer", ["norm", "act", "proj"])
def test_layers_that_somebody_watches_or_wraps_are_called(layer: str) -> None:
    glu, x = norm_glu(), torch.randn(2, 6, 5, 4, dtype=torch.float64)
    expected, seen = glu(x), []
    hook = getattr(glu, layer).register_forward_hook(lambda *_: seen.append(1))
    assert_close(glu(x), expected, 1e-12)
    assert seen == [1]
    hook.remove()
    hook = getattr(glu, layer).register_full_backward_hook(lambda *_: seen.append(2))
    glu(x.requires_grad_()).sum().backward()
    assert seen == [1, 2]
    hook.remove()

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    setattr(glu, layer, Doubled(getattr(glu, layer)))
    assert not torch.allclose(glu(x), expected)


@pytest.mark.parametrize("size", [1, 30, 60])
def test_in_float16_large_products_are_normalized(size: float) -> None:
    glu, x = norm_glu().float(), size * torch.randn(2, 6, 5, 4)
    expected = glu(x)
    glu.half()
    assert_close(glu(x.half()).float(), expected, 5e-3)


def test_under_autocast_the_maps_stay_in_bfloat16() -> None:
    model, seen = tiny_attnet(glu_norm=True, ls_init_value=None), []
    model.stages[0].blocks[0].register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 3, 32, 32))
    assert seen == [torch.bfloat16]
