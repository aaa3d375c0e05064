"""SiT: the release's numbers, names and grid; sizes it takes; what it rejects."""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import atconv
from atconv.diffusion.field import Field
from atconv.diffusion.interpolants import Linear
from atconv.models import sit as sit_module
from atconv.models.release import to_sit
from atconv.models.sit import VARIANTS, SiT, create_sit, position_table
from atconv.modules import ATConvTokens
from support.helpers import FIXTURES, assert_close, reference, under
from support.tiny_sit import FAMILIES, inputs_of, tiny_sit

RELEASE_NAMES = {
    "sit_s_2": "SiT-S/2",
    "sit_atconv_s_2": "SiT-ATConv-S/2",
    "sit_hybrid_s_2": "SiT-ATConv-S/2-Hybrid",
}


def reference_case(family: str) -> dict[str, Tensor]:
    return under(f"{family}.", reference("sit")[0])


def reference_state(family: str) -> dict[str, Tensor]:
    """The release's state dict, as in its files."""
    return under("weights.", reference_case(family))


def reference_arguments(family: str) -> dict[str, Any]:
    config = dict(reference("sit")[1]["configs"][family])
    del config["input_size"], config["token_mixer"]
    config.pop("hybrid", None)
    return config | {"token_mixer": family}


def reference_model(family: str) -> SiT:
    model = SiT(**reference_arguments(family))
    model.load_state_dict(to_sit(reference_state(family)))
    return model.eval()


@functools.cache
def release_shapes() -> dict[str, dict[str, list[int]]]:
    return json.loads((FIXTURES / "sit_release_keys.json").read_text())


def shapes_of(model: SiT) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def without_storage(name: str, **arguments: Any) -> SiT:
    with torch.device("meta"):
        return create_sit(name, **arguments)


# The release's numbers.


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_velocity_is_that_of_the_release(family: str) -> None:
    case = reference_case(family)
    velocity = reference_model(family)(case["x"], case["t"], case["y"])
    assert_close(velocity, case["velocity"], 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_guided_velocity_is_that_of_the_release(family: str) -> None:
    case, model = reference_case(family), reference_model(family)
    x, labels, t = case["x"][:2], case["y"][:2], torch.tensor(0.3)
    guided = Field(model, Linear(), "velocity", labels, guidance_scale=4.0, guidance_channels=3)(t, x)
    assert_close(guided, case["cfg_velocity"][:2], 2e-5)
    # The release's other half: the same guided channels, and what the null label gives of the last one.
    unconditional = Field(model, Linear(), "velocity", torch.full_like(labels, 10))(t, x)
    assert_close(torch.cat([guided[:, :3], unconditional[:, 3:]], dim=1), case["cfg_velocity"][2:], 2e-5)


@pytest.mark.parametrize("family", ["attention", "hybrid"])
def test_positions_are_the_table_of_the_release(family: str) -> None:
    table = reference_state(family)["pos_embed"]
    assert torch.equal(reference_model(family)._positions(4, 4), table)


@pytest.mark.parametrize("name", RELEASE_NAMES)
def test_names_and_shapes_are_those_of_the_release(name: str) -> None:
    published = {
        k: torch.empty(shape, device="meta") for k, shape in release_shapes()[RELEASE_NAMES[name]].items()
    }
    renamed = {k: tuple(t.shape) for k, t in to_sit(published).items()}
    assert renamed == shapes_of(without_storage(name))
    assert ("pos_embed" in published) == without_storage(name).has_positions


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_the_published_sizes(name: str) -> None:
    model = without_storage(name)
    family, size = name.removesuffix("_2").rsplit("_", 1)
    depth, width, heads = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}[
        size
    ]
    mixers = [isinstance(block.mixer, ATConvTokens) for block in model.blocks]
    expected = {
        "sit": [False] * depth,
        "sit_atconv": [True] * depth,
        "sit_hybrid": [False, True] * (depth // 2),
    }[family]
    assert mixers == expected
    assert (model.patch_size, model.hidden_size, model.mlp_hidden_size) == (2, width, 4 * width)
    assert all(block.mixer.num_heads == heads for block in model.blocks if hasattr(block.mixer, "num_heads"))
    assert all(
        block.mixer.kernel_size == 3 for block in model.blocks if isinstance(block.mixer, ATConvTokens)
    )


def test_there_are_twelve_variants_and_an_unknown_one_is_rejected() -> None:
    assert len(VARIANTS) == 12
    with pytest.raises(ValueError, match="no SiT 'sit_m_2'; there are sit_s_2"):
        create_sit("sit_m_2")


# Sizes and positions.


@settings(deadline=None, max_examples=25)
@given(
    family=st.sampled_from(FAMILIES),
    patch=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    channels=st.integers(1, 6),
    batch=st.integers(1, 3),
)
@torch.no_grad()
def test_any_patch_size_channels_and_grid(
    family: str, patch: int, rows: int, columns: int, channels: int, batch: int
) -> None:
    model = tiny_sit(token_mixer=family, patch_size=patch, in_channels=channels)
    given_inputs = inputs_of(model, batch, rows * patch, columns * patch)
    velocity = model(*given_inputs)
    assert velocity.shape == given_inputs[0].shape
    assert velocity.isfinite().all()


def test_patches_are_laid_out_as_they_were_cut() -> None:
    """With blocks that do nothing, a pixel of the output depends on its own patch alone."""
    model = tiny_sit(patch_size=2, in_channels=1, num_classes=0)
    for block in model.blocks:
        torch.nn.init.zeros_(block.modulation.weight)
        torch.nn.init.zeros_(block.modulation.bias)
    x = torch.randn(1, 1, 4, 6)
    changed = x.clone()
    changed[:, :, 2:4, 4:6] += 1
    difference = (model(changed, torch.ones(1)) - model(x, torch.ones(1)))[0, 0].abs() > 1e-6
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(difference, expected)


def test_positions_of_a_small_grid_are_a_block_of_a_large_one() -> None:
    model = tiny_sit(token_mixer="attention")
    large = model._positions(7, 9).unflatten(1, (7, 9))
    small = model._positions(3, 5).unflatten(1, (3, 5))
    assert torch.equal(small, large[:, :3, :5])


def test_positions_encode_the_column_first_then_the_row() -> None:
    model = tiny_sit(token_mixer="attention")
    table = model._positions(3, 4).unflatten(1, (3, 4))[0]
    column, row, quarter = 3, 2, 8
    for index, (offset, position) in enumerate(((0, column), (16, row))):
        for i in range(quarter):
            angle = position * 10000 ** (-i / quarter)
            assert float(table[row, column, offset + i]) == pytest.approx(math.sin(angle), abs=1e-6), index
            assert float(table[row, column, offset + quarter + i]) == pytest.approx(math.cos(angle), abs=1e-6)


@torch.no_grad()
def test_grids_longer_than_the_table_continue_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_sit(token_mixer="attention", patch_size=1, in_channels=1)
    monkeypatch.setattr(sit_module, "_TABLE_LENGTH", 3)
    short = tiny_sit(token_mixer="attention", patch_size=1, in_channels=1)
    assert len(short.positions) == 3 < len(model.positions)
    given_inputs = inputs_of(model, 2, 4, 5)
    assert torch.equal(short(*given_inputs), model(*given_inputs))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_only_models_with_positions_know_where_a_patch_is(family: str) -> None:
    model = tiny_sit(token_mixer=family)
    assert model.has_positions == (family != "atconv") == hasattr(model, "positions")
    assert "positions" not in model.state_dict()
    chosen = tiny_sit(token_mixer=family, position_embedding=family == "atconv")
    assert chosen.has_positions != model.has_positions
    assert chosen.state_dict().keys() == model.state_dict().keys()


@torch.no_grad()
def test_a_channel_gate_scales_what_atconv_gives() -> None:
    model = tiny_sit(token_mixer="hybrid", channel_gate=True, mixer_args={"kernel_size": 5})
    attention, atconv_block = model.blocks
    assert attention.gate is None
    assert atconv_block.mixer.kernel_size == 5
    x, condition = torch.randn(2, 12, 32), torch.randn(2, 32)
    gated = atconv_block(x, condition, (3, 4))
    gate, atconv_block.gate = atconv_block.gate, None
    mixed: list[Tensor] = []
    atconv_block.mixer.register_forward_hook(lambda _, inputs, output: mixed.append(output))
    atconv_block(x, condition, (3, 4))
    shares = torch.sigmoid(mixed[0].mean(1) @ gate.weight.T + gate.bias)
    atconv_block.mixer.register_forward_hook(lambda _, inputs, output: output * shares[:, None])
    assert_close(atconv_block(x, condition, (3, 4)), gated, 1e-5)


def test_further_options_are_saved(tmp_path: Path) -> None:
    model = tiny_sit(channel_gate=True, position_embedding=True, mixer_args={"context_grid": True})
    model.save_pretrained(tmp_path)
    again, inputs = SiT.from_pretrained(tmp_path), inputs_of(model)
    assert torch.equal(again(*inputs), model(*inputs))
    assert all(block.mixer.context_grid for block in again.blocks)


def test_position_table_is_sines_then_cosines() -> None:
    table = position_table(300, 8)
    assert table.shape == (300, 4)
    angles = torch.arange(300, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.01], dtype=torch.float64)
    assert_close(table, torch.cat([angles.sin(), angles.cos()], 1), 1e-6)


# Time, labels, channels.


def test_time_is_embedded_by_cosines_then_sines_unscaled() -> None:
    embed = tiny_sit().time_embed
    embedded: list[Tensor] = []
    embed.fc1.register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0]))
    embed(torch.tensor([0.0, 0.37]), torch.float32)
    angles = 0.37 * 10000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    assert_close(embedded[0][1], torch.cat([angles.cos(), angles.sin()]), 1e-6)
    assert torch.equal(embedded[0][0], torch.cat([torch.ones(128), torch.zeros(128)]))


def test_the_null_label_is_one_more_row_only_where_labels_are_dropped() -> None:
    with_null, without = tiny_sit(label_dropout=0.1), tiny_sit(label_dropout=0.0)
    assert (with_null.null_label, with_null.label_embed.num_embeddings) == (10, 11)
    assert (without.null_label, without.label_embed.num_embeddings) == (None, 10)


@torch.no_grad()
def test_a_model_without_classes_takes_no_labels() -> None:
    model = tiny_sit(num_classes=0)
    assert model.label_embed is None
    assert model.null_label is None
    x, t = inputs_of(model)
    assert model(x, t).shape == x.shape
    with pytest.raises(ValueError, match="no classes: leave labels out"):
        model(x, t, torch.zeros(3, dtype=torch.long))


@torch.no_grad()
def test_the_second_half_of_each_pixels_channels_is_dropped() -> None:
    model = tiny_sit(learn_sigma=True, in_channels=3)
    given_inputs = inputs_of(model)
    velocity = model(*given_inputs)
    rows = torch.arange(4 * 6)  # row, column, channel: channel fastest
    model.head.linear.bias[rows % 6 >= 3] += 1
    assert torch.equal(model(*given_inputs), velocity)
    model.head.linear.bias[rows % 6 == 1] += 1
    expected = velocity.clone()
    expected[:, 1] += 1
    assert_close(model(*given_inputs), expected, 1e-6)


def test_without_learn_sigma_there_is_no_second_half() -> None:
    assert tiny_sit(learn_sigma=False, in_channels=3).head.linear.out_features == 12
    assert tiny_sit(learn_sigma=True, in_channels=3).head.linear.out_features == 24


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_reversed_time_is_the_negative_velocity_at_the_other_end(family: str) -> None:
    model, reverse = tiny_sit(token_mixer=family), tiny_sit(token_mixer=family, time_reversed=True)
    reverse.load_state_dict(model.state_dict())
    x, t, labels = inputs_of(model)
    assert torch.equal(reverse(x, t, labels), -model(x, 1 - t, labels))


# A newly initialized model.


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_new_model_predicts_zero_and_its_blocks_do_nothing(family: str) -> None:
    model = SiT(
        patch_size=2, in_channels=4, hidden_size=64, depth=2, num_heads=4, num_classes=10, token_mixer=family
    )
    given_inputs = inputs_of(model)
    assert not model(*given_inputs).any()
    tokens, condition = torch.randn(3, 16, 64), torch.randn(3, 64)
    for block in model.blocks:
        assert torch.equal(block(tokens, condition, (4, 4)), tokens)


def test_initial_weights_are_sampled_as_in_the_release() -> None:
    model = SiT(in_channels=4, hidden_size=64, depth=2, num_heads=4, num_classes=200)
    for name, parameter in model.named_parameters():
        if name.endswith(("alpha", "bias")) or "modulation" in name or name == "head.linear.weight":
            assert not parameter.any(), name
        elif name.startswith(("time_embed", "label_embed")):
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.1), name
        else:  # Xavier: uniform within ±√(6 / (in + out)), the patch embedding as if it were linear
            matrix = parameter.detach().flatten(1)
            bound = math.sqrt(6 / sum(matrix.shape))
            assert float(matrix.abs().max()) <= bound, name
            assert float(matrix.std()) == pytest.approx(bound / math.sqrt(3), rel=0.25), name


# Saving, counting, computing.


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_saved_model_opens_with_identical_outputs(family: str, tmp_path: Path) -> None:
    model = tiny_sit(token_mixer=family, patch_size=1, mixer_act="silu", label_dropout=0.0)
    model.save_pretrained(tmp_path)
    opened = SiT.from_pretrained(tmp_path)
    assert not opened.training
    public = {name: value for name, value in model.config.items() if not name.startswith("_")}
    assert public == {name: value for name, value in opened.config.items() if not name.startswith("_")}
    given_inputs = inputs_of(model)
    assert torch.equal(opened(*given_inputs), model(*given_inputs))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
@torch.no_grad()
def test_macs_equal_the_count_of_torch(
    family: str, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_sit(token_mixer=family, channel_gate=True)
    # torch counts a grouped convolution, and not the shifted products that channels-last maps go through.
    monkeypatch.setattr("atconv.ops.dynamic_depthwise_conv.is_channels_last", lambda x: False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs_of(model, 1, height, width))
    assert counter.get_total_flops() == 2 * model.macs(height, width)


def test_macs_of_the_published_attention_model() -> None:
    """SiT-XL/2 at 32 × 32: DiT's 118.6 G (arXiv 2212.09748)."""
    assert without_storage("sit_xl_2").macs(32, 32) / 1e9 == pytest.approx(118.6, abs=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    model = tiny_sit(token_mixer=family)
    given_inputs = inputs_of(model)

    def gradients() -> list[Tensor]:
        loss = (model(*given_inputs) ** 2).mean()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    plain = gradients()
    calls = 0

    def counted(*_: Any) -> None:
        nonlocal calls
        calls += 1

    model.blocks[0].register_forward_pre_hook(counted)
    model.enable_gradient_checkpointing()
    for ours, expected in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    assert calls == 2, "the block is computed again for its gradient"


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_autocast_stays_near_float32(family: str) -> None:
    model = tiny_sit(token_mixer=family)
    given_inputs = inputs_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(*given_inputs)
    (low.float() ** 2).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert_close(low.float(), model(*given_inputs), 0.1)


@pytest.mark.usefixtures("reset_compiler")
@torch.no_grad()
def test_the_atconv_family_compiles_without_a_graph_break() -> None:
    model = tiny_sit()
    given_inputs = inputs_of(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*given_inputs), model(*given_inputs), 1e-5)


@pytest.mark.parametrize("block", [1, 2])
@torch.no_grad()
def test_the_tokens_of_a_block_are_given_when_asked_for(block: int) -> None:
    model = tiny_sit()
    given_inputs = inputs_of(model)
    seen: list[Tensor] = []
    model.blocks[block - 1].register_forward_hook(lambda module, args, output: seen.append(output))
    velocity, tokens = model.forward_features(*given_inputs, block=block)
    assert tokens is not None
    assert torch.equal(tokens, seen[0])
    assert torch.equal(velocity, model(*given_inputs))


# Bad input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden_size=30), "multiple of 4"),
        (dict(num_heads=5), "with 5 heads"),
        (dict(depth=0), "at least 1"),
        (dict(patch_size=0), "at least 1"),
        (dict(in_channels=0), "at least 1"),
        (dict(num_classes=-1), "num_classes of at least 0"),
        (dict(label_dropout=1.0), r"label_dropout must lie in \[0, 1\)"),
        (dict(token_mixer="attn"), "token_mixer must be attention, atconv or hybrid, got 'attn'"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_sit(**changes)


def test_an_unknown_argument_is_rejected() -> None:
    with pytest.raises(TypeError, match="width"):
        create_sit("sit_s_2", width=3)


LABELS = torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("x", "t", "labels", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), LABELS, r"takes x as B 4 H W, got \(2, 3, 8, 8\)"),
        (torch.zeros(4, 8, 8), torch.zeros(4), LABELS, "takes x as B 4 H W"),
        (torch.zeros(2, 4, 9, 8), torch.zeros(2), LABELS, "9 × 8: crop or pad to 8 × 8"),
        (torch.zeros(2, 4, 8, 1), torch.zeros(2), LABELS, "8 × 1: crop or pad to 8 × 2"),
        (torch.zeros(2, 4, 8, 8), torch.zeros(()), LABELS, "one t for each of 2 samples"),
        (torch.zeros(2, 4, 8, 8), torch.zeros(2), None, "one label for each of 2 samples, got none"),
        (
            torch.zeros(2, 4, 8, 8),
            torch.zeros(2),
            LABELS.float(),
            "labels must be integers, got torch.float32",
        ),
        (
            torch.zeros(2, 4, 8, 8),
            torch.zeros(2),
            LABELS + 9,
            r"lie in 0 … 10 \(null label: 10\), got 10 … 11",
        ),
        (torch.zeros(2, 4, 8, 8), torch.zeros(2), LABELS - 2, "labels must lie in 0 … 10"),
        (torch.zeros(2, 4, 8, 8), torch.zeros(2), LABELS[:1], r"one label .* got shape \(1,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_rejected(
    x: Tensor, t: Tensor, labels: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_sit()(x, t, labels)


# The authors' files.


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def new_model(family: str, **changes: Any) -> SiT:
    return SiT(**(reference_arguments(family) | changes))


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


def saved(content: Any, folder: Path, name: str = "checkpoint.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def assert_holds(model: SiT, state: dict[str, Tensor]) -> None:
    expected = to_sit(state)
    assert expected.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@contextmanager
def unchanged(model: SiT) -> Iterator[None]:
    before = copy.deepcopy(model.state_dict())
    yield
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_ema_is_preferred_and_the_model_taken_by_choice(family: str, tmp_path: Path) -> None:
    ema = reference_state(family)
    content = {"model": other(ema), "ema": ema, "opt": {"state": {}}, "args": argparse.Namespace(model="SiT")}
    path, model = saved(content, tmp_path), new_model(family)
    atconv.load_release(model, path)
    assert_holds(model, ema)
    atconv.load_release(model, path, use_ema=False)
    assert_holds(model, other(ema))
    case = reference_case(family)
    atconv.load_release(model, path, use_ema=True)
    assert_close(model.eval()(case["x"], case["t"], case["y"]), case["velocity"], 2e-5)


def test_a_file_without_ema_gives_its_model(family: str, tmp_path: Path) -> None:
    state = reference_state(family)
    path, model = saved({"model": state, "opt": {}}, tmp_path), new_model(family)
    atconv.load_release(model, path)
    assert_holds(model, state)
    with unchanged(model), pytest.raises(ValueError, match=r"no weights under '(model_)?ema'"):
        atconv.load_release(model, path, use_ema=True)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_bare_state_dicts_and_prefixes(family: str, prefix: str, suffix: str, tmp_path: Path) -> None:
    state, path = reference_state(family), tmp_path / f"weights.{suffix}"
    prefixed = {prefix + name: tensor.clone() for name, tensor in state.items()}
    (save_file if suffix == "safetensors" else torch.save)(prefixed, path)
    model = new_model(family)
    atconv.load_release(model, path)
    assert_holds(model, state)


def test_our_own_names_load_too(family: str, tmp_path: Path) -> None:
    state = reference_state(family)
    model = new_model(family)
    atconv.load_release(model, saved(to_sit(state), tmp_path))
    assert_holds(model, state)


@pytest.mark.parametrize(("family", "other"), list(permutations(FAMILIES, 2)))
def test_another_family_is_rejected_and_the_fitting_one_named(
    family: str, other: str, tmp_path: Path
) -> None:
    model = new_model(other)
    path = saved({"ema": reference_state(family)}, tmp_path)
    with (
        unchanged(model),
        pytest.raises(ValueError, match=f"token_mixer='{family}', hidden_size=32, depth=4") as raised,
    ):
        atconv.load_release(model, path)
    assert str(path) in str(raised.value)
    assert "mixer" in str(raised.value).partition("does not fit this model: ")[2].partition(". ")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden_size=64), "hidden_size=32, depth=4, in_channels=4, patch_size=2 and 11 rows of labels"),
        (dict(depth=2), "depth=4"),
        (dict(in_channels=3), "in_channels=4"),
        (dict(patch_size=1), "patch_size=2"),
        (dict(num_classes=7), "label_embed.weight is .11, 32. in the file and .8, 32. in the model"),
        (dict(label_dropout=0.0), "11 rows of labels .one may be the null label."),
        (
            dict(learn_sigma=False),
            r"head.linear.weight is \(32, 32\) in the file and \(16, 32\) in the model",
        ),
    ],
)
def test_another_size_is_rejected_and_the_fitting_one_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = new_model("atconv", **changes)
    with unchanged(model), pytest.raises(ValueError, match=message):
        atconv.load_release(model, saved(reference_state("atconv"), tmp_path))


def test_a_file_of_another_kind_of_model_is_rejected(tmp_path: Path) -> None:
    model = new_model("atconv")
    with unchanged(model), pytest.raises(ValueError, match="It is not a SiT checkpoint"):
        atconv.load_release(model, saved({"stem.conv1.weight": torch.ones(3)}, tmp_path))


class _Foreign:
    """A class that no checkpoint may build."""


def test_foreign_objects_are_rejected_by_name(tmp_path: Path) -> None:
    model = new_model("atconv")
    path = saved({"ema": reference_state("atconv"), "extra": _Foreign()}, tmp_path)
    with unchanged(model), pytest.raises(ValueError, match=r"it holds [\w.]*_Foreign;"):
        atconv.load_release(model, path)


def test_a_truncated_file_is_rejected(tmp_path: Path) -> None:
    model, path = new_model("atconv"), saved({"ema": reference_state("atconv")}, tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with unchanged(model), pytest.raises(ValueError, match="truncated"):
        atconv.load_release(model, path)


def test_renaming_keeps_every_tensor_but_the_positions(family: str) -> None:
    state = reference_state(family)
    renamed = to_sit(state)
    assert len(renamed) == len(state) - ("pos_embed" in state)
    assert to_sit(renamed).keys() == renamed.keys()


# As diffusers uses its models.


def test_the_output_is_as_diffusers_asks_for_it() -> None:
    model = tiny_sit()
    inputs = inputs_of(model)
    velocity = model(*inputs)
    assert torch.equal(model(*inputs, return_dict=True).sample, velocity)
    (alone,) = model(*inputs, return_dict=False)
    assert torch.equal(alone, velocity)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_may_be_stored_smaller_than_they_compute(family: str) -> None:
    model = tiny_sit(token_mixer=family).to(torch.bfloat16)
    x, t, labels = inputs_of(model)
    expected = model(x.bfloat16(), t, labels)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    cast = model(x.bfloat16(), t, labels)
    assert cast.dtype == torch.bfloat16
    assert float((cast - expected).norm() / expected.norm()) < 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_added_and_acts(family: str) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_sit(token_mixer=family)
    inputs = inputs_of(model)
    before = model(*inputs)
    layers = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    mixers = [name for name in layers if ".mixer." in name]
    assert mixers
    model.add_adapter(peft.LoraConfig(r=2, target_modules=mixers, init_lora_weights=False))
    assert not torch.allclose(model(*inputs), before)
    model.disable_adapters()
    torch.testing.assert_close(model(*inputs), before)


def test_blocks_are_named_for_offloading_and_compiling() -> None:
    names = {type(block).__name__ for block in tiny_sit().blocks}
    assert set(SiT._no_split_modules) == set(SiT._repeated_blocks) == names
