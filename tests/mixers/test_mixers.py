"""Every token mixer against a form written from its paper's formula, position by position."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.optim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from atconv.mixers import MIXERS, Mixer, create_mixer
from atconv.mixers.attention import heads_for
from atconv.modules import ATConv2d
from support.helpers import assert_close, randomize

Position = tuple[int, int]

# Every mixer, and the forms of it that differ in what they compute or learn.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in MIXERS} | {
    "atconv without routing": ("atconv", {"routing": False}),
    "atconv without inhibition": ("atconv", {"inhibition": False}),
    "atconv with neither": ("atconv", {"routing": False, "inhibition": False}),
    "atconv with a context grid": ("atconv", {"context_grid": True}),
    "attention with rope": ("attention", {"rope": True}),
    "depthwise 7×7": ("depthwise", {"kernel_size": 7}),
}


def mixer_of(name: str, dim: int, **options: object) -> nn.Module:
    """In float64 and eval mode, with weights that matter."""
    return randomize(create_mixer(name, dim, **options)).double().eval()


def positions(height: int, width: int) -> list[Position]:
    return [(i, j) for i in range(height) for j in range(width)]


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer or 1×1 convolution applied to channels that come first."""
    weight = layer.weight.flatten(1)
    y = torch.einsum("oc,c...->o...", weight, x)
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * (x.ndim - 1))


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, seen: Callable[[Position], Iterable[tuple[Position, Tensor]]]
) -> Tensor:
    """Softmax attention of one sample, C H W each. `seen` gives positions of k and a bias for each head."""
    dim = len(q)
    out = torch.zeros_like(q)
    for i, j in positions(*q.shape[1:]):
        for head in range(heads):
            part = slice(head * dim // heads, (head + 1) * dim // heads)
            attended = list(seen((i, j)))
            logits = torch.stack(
                [
                    q[part, i, j] @ k[part, a, b] / math.sqrt(dim / heads) + bias[head]
                    for (a, b), bias in attended
                ]
            )
            weights = logits.softmax(0)
            out[part, i, j] = sum(w * v[part, a, b] for w, ((a, b), _) in zip(weights, attended, strict=True))
    return out


def full_map(x: Tensor) -> Callable[[Position], Iterable[tuple[Position, Tensor]]]:
    zero = torch.zeros(99, dtype=x.dtype)
    return lambda _: [(p, zero) for p in positions(*x.shape[1:])]


def naive_attention(mixer: nn.Module, x: Tensor) -> Tensor:
    if mixer.rope is not None:
        return naive_rope_attention(mixer, x)
    q, k, v = linear(mixer.attention.qkv, x).chunk(3)
    return linear(mixer.attention.proj, attend(q, k, v, mixer.attention.num_heads, full_map(x)))


def rotate(x: Tensor, heads: int) -> Tensor:
    """Neighboring channels of a head turn, the first half by the row, the second half by the column."""
    width = len(x) // heads
    bands = 10000 ** (-torch.arange(width // 4, dtype=x.dtype) / (width // 4))
    turned = x.clone()
    for i, j in positions(*x.shape[1:]):
        angles = torch.cat([i * bands, j * bands])
        for head in range(heads):
            part = x[head * width : (head + 1) * width, i, j]
            pairs = torch.complex(part[0::2].contiguous(), part[1::2].contiguous())
            pairs = pairs * torch.polar(torch.ones_like(angles), angles)
            turned[head * width : (head + 1) * width, i, j] = torch.view_as_real(pairs).flatten()
    return turned


def naive_rope_attention(mixer: nn.Module, x: Tensor) -> Tensor:
    q, k, v = linear(mixer.attention.qkv, x).chunk(3)
    heads = mixer.attention.num_heads
    out = attend(rotate(q, heads), rotate(k, heads), v, heads, full_map(x))
    return linear(mixer.attention.proj, out)


def naive_window_attention(mixer: nn.Module, x: Tensor) -> Tensor:
    size = mixer.window
    shifts = [mixer.shift if length > size else 0 for length in x.shape[1:]]
    table = mixer.attention.relative_position_bias_table
    q, k, v = linear(mixer.attention.qkv, x).chunk(3)

    def window(p: Position) -> Position:
        return tuple((a + size - shift) // size for a, shift in zip(p, shifts, strict=True))

    def seen(p: Position) -> Iterable[tuple[Position, Tensor]]:
        for other in positions(*x.shape[1:]):
            if window(other) == window(p):
                row, column = p[0] - other[0] + size - 1, p[1] - other[1] + size - 1
                yield other, table[row * (2 * size - 1) + column]

    return linear(mixer.attention.proj, attend(q, k, v, mixer.attention.num_heads, seen))


def naive_neighborhood_attention(mixer: nn.Module, x: Tensor) -> Tensor:
    size = mixer.kernel_size
    q, k, v = linear(mixer.qkv, x).chunk(3)

    def axis(position: int, length: int) -> range:
        count = min(size, length)
        first = min(max(position - count // 2, 0), length - count)
        return range(first, first + count)

    def seen(p: Position) -> Iterable[tuple[Position, Tensor]]:
        for a in axis(p[0], x.shape[1]):
            for b in axis(p[1], x.shape[2]):
                yield (a, b), mixer.position_bias[:, a - p[0] + size - 1, b - p[1] + size - 1]

    return linear(mixer.proj, attend(q, k, v, mixer.num_heads, seen))


def naive_spatial_reduction_attention(mixer: nn.Module, x: Tensor) -> Tensor:
    layer, step = mixer.attention, mixer.reduction
    rows, columns = x.shape[1] // step, x.shape[2] // step
    small = torch.stack(
        [
            torch.einsum(
                "ochw,chw->o", layer.sr.weight, x[:, i * step : (i + 1) * step, j * step : (j + 1) * step]
            )
            for i, j in positions(rows, columns)
        ],
        1,
    ).unflatten(1, (rows, columns)) + layer.sr.bias.view(-1, 1, 1)
    normed = (small - small.mean(0)) / (small.var(0, unbiased=False) + 1e-5).sqrt()
    small = normed * layer.norm.weight.view(-1, 1, 1) + layer.norm.bias.view(-1, 1, 1)
    k, v = linear(layer.kv, small).chunk(2)
    return linear(layer.proj, attend(linear(layer.q, x), k, v, layer.num_heads, full_map(small)))


def naive_linear_attention(mixer: nn.Module, x: Tensor) -> Tensor:
    heads, dim = mixer.num_heads, len(x)
    q, k, v = linear(mixer.qkv, x).flatten(1).chunk(3)
    out = torch.zeros_like(v)
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        similar = (nn.functional.elu(q[part]) + 1).T @ (nn.functional.elu(k[part]) + 1)
        out[part] = v[part] @ (similar / similar.sum(1, keepdim=True)).T
    return linear(mixer.proj, out.view_as(x))


def around(x: Tensor, i: int, j: int, size: int) -> Tensor:
    """The K×K neighborhood of a position, zeros outside the map: C K K."""
    padded = nn.functional.pad(x, (size // 2,) * 4)
    return padded[:, i : i + size, j : j + size]


def routed(x: Tensor, kernel: Tensor) -> Tensor:
    """C H W with C K K."""
    out = torch.zeros_like(x)
    for i, j in positions(*x.shape[1:]):
        out[:, i, j] = (around(x, i, j, kernel.shape[-1]) * kernel).sum((1, 2))
    return out


def naive_depthwise(mixer: nn.Module, x: Tensor) -> Tensor:
    return routed(x, mixer.weight[:, 0]) + mixer.bias.view(-1, 1, 1)


def naive_pooling(mixer: nn.Module, x: Tensor) -> Tensor:
    count = routed(torch.ones_like(x), torch.ones(len(x), 3, 3, dtype=x.dtype))
    return routed(x, torch.ones(len(x), 3, 3, dtype=x.dtype)) / count - x


def naive_involution(mixer: nn.Module, x: Tensor) -> Tensor:
    conv, norm, _ = mixer.reduce
    hidden = linear(conv, x)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    hidden = (hidden - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    kernels = linear(mixer.span, hidden.clamp_min(0))
    size, out = mixer.kernel_size, torch.zeros_like(x)
    for i, j in positions(*x.shape[1:]):
        for channel in range(len(x)):
            group = channel * mixer.groups // len(x)
            kernel = kernels[group * size**2 : (group + 1) * size**2, i, j].view(size, size)
            out[channel, i, j] = (around(x, i, j, size)[channel] * kernel).sum()
    return out


def naive_condconv(mixer: nn.Module, x: Tensor) -> Tensor:
    shares = torch.sigmoid(linear(mixer.routing, x.mean((1, 2))))
    kernel = sum(s * w for s, w in zip(shares, mixer.conv.weight, strict=True)).view(len(x), 3, 3)
    bias = sum(s * b for s, b in zip(shares, mixer.conv.bias, strict=True))
    return routed(x, kernel) + bias.view(-1, 1, 1)


NAIVE: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "attention": naive_attention,
    "window_attention": naive_window_attention,
    "neighborhood_attention": naive_neighborhood_attention,
    "spatial_reduction_attention": naive_spatial_reduction_attention,
    "linear_attention": naive_linear_attention,
    "depthwise": naive_depthwise,
    "pooling": naive_pooling,
    "involution": naive_involution,
    "condconv": naive_condconv,
    "identity": lambda _, x: x,
}
CASES = [(name, {}, (5, 4)) for name in NAIVE] + [
    ("attention", dict(rope=True), (5, 4)),
    ("depthwise", dict(kernel_size=7), (5, 4)),
    ("window_attention", dict(window=3), (7, 5)),
    ("window_attention", dict(window=3, block=1), (7, 5)),
    ("window_attention", dict(window=4, block=1), (8, 4)),
    ("window_attention", dict(window=4, block=1), (3, 4)),
    ("neighborhood_attention", dict(kernel_size=3), (5, 2)),
    ("spatial_reduction_attention", dict(reduction=2), (4, 7)),
    ("involution", dict(kernel_size=3, group_width=4), (4, 4)),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "options", "size"), CASES, ids=lambda value: str(value))
def test_mixers_equal_their_formulas(name: str, options: dict[str, int], size: Position) -> None:
    mixer = mixer_of(name, 16, **({"head_dim": 8} if "attention" in name else {}), **options)
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    assert_close(mixer(x), torch.stack([NAIVE[name](mixer, sample) for sample in x]), 1e-6)


def test_every_mixer_has_a_formula() -> None:
    assert set(NAIVE) | {"atconv"} == set(MIXERS)


def test_a_context_grid_averages_cells() -> None:
    mixer = mixer_of("atconv", 4, context_grid=True)
    x = torch.randn(1, 4, 6, 9, dtype=torch.float64)
    cells = x.unflatten(2, (3, 2)).unflatten(4, (3, 3)).mean((3, 5))  # B C 3 3
    plain = create_mixer("atconv", 4).double()
    plain.load_state_dict(mixer.state_dict())
    # A map of 3 × 3 has one position a raster bin: its bins are the cells themselves.
    assert_close(mixer.kernels(x), plain.kernels(cells), 1e-12)
    assert (mixer.kernels(x) - plain.kernels(x)).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(1, 3), dim=st.integers(1, 12).map(lambda n: 4 * n), height=st.integers(1, 9),
    width=st.integers(1, 9), block=st.integers(0, 1),
)  # fmt: skip
def test_maps_of_any_size_keep_it(
    form: str, batch: int, dim: int, height: int, width: int, block: int
) -> None:
    name, options = FORMS[form]
    mixer = create_mixer(name, dim, block, **options).eval()
    x = torch.randn(batch, dim, height, width, requires_grad=True)
    y = mixer(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("size", [(14, 14), (9, 5)])
@pytest.mark.parametrize("form", FORMS)
def test_macs_are_those_that_torch_counts(form: str, size: Position) -> None:
    name, options = FORMS[form]
    mixer = create_mixer(name, 48, **options).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer(torch.randn(1, 48, *size))
    counted = counter.get_total_flops() // 2
    if name == "involution":  # torch does not count products of elements
        counted += size[0] * size[1] * 49 * 48
    assert mixer.macs(*size) == counted


@pytest.mark.parametrize("form", FORMS)
def test_an_attnet_of_every_mixer_learns(form: str) -> None:
    name, options = FORMS[form]
    small = {"num_classes": 3, "dims": (8, 16, 16, 32), "stem_stride": 2}
    model = timm.create_model("attnet_xxs", token_mixer=name, mixer_args=options, **small)
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert not unused


def test_each_stage_may_have_a_mixer_of_its_own() -> None:
    model = timm.create_model(
        "attnet_xxs",
        token_mixer=["depthwise", "window_attention", "atconv", "attention"],
        mixer_args=[{}, {"window": 4}, {"kernel_size": 5}, {"rope": True}],
    )
    kinds = [[type(block.token_mixer).__name__ for block in stage.blocks] for stage in model.stages]
    assert [set(kind) for kind in kinds] == [
        {"DepthwiseConv"},
        {"WindowAttention"},
        {"ATConv2d"},
        {"SelfAttention"},
    ]
    assert [block.token_mixer.shift for block in model.stages[1].blocks] == [0, 2]
    assert model.stages[2].blocks[0].token_mixer.kernel_size == 5
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.randn(1, 3, 64, 96))
    assert model.macs(64, 96) == counter.get_total_flops() // 2


def test_the_default_mixer_is_the_released_operator() -> None:
    model = timm.create_model("attnet_xxs")
    mixers = [block.token_mixer for stage in model.stages for block in stage.blocks]
    for mixer in mixers:
        assert isinstance(mixer, ATConv2d)
        assert (mixer.kernel_size, mixer.routing, mixer.inhibition, mixer.context_grid) == (
            3,
            True,
            True,
            False,
        )


def test_position_biases_are_exempt_from_weight_decay() -> None:
    model = timm.create_model(
        "attnet_xxs", token_mixer=["window_attention"] * 2 + ["neighborhood_attention"] * 2
    )
    groups = timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    exempt = {id(p) for p in groups[0]["params"]}
    biases = [p for n, p in model.named_parameters() if "position_bias" in n]
    assert biases
    assert all(id(p) in exempt for p in biases)


def test_a_static_kernel_starts_as_other_convolutions_do() -> None:
    model = timm.create_model("attnet_xxs", mixer_args={"routing": False, "inhibition": False})
    kernels = torch.cat([p.flatten() for n, p in model.named_parameters() if n.endswith("static_kernel")])
    assert kernels.std().item() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize(
    ("dim", "heads"),
    [(32, 1), (64, 2), (240, 6), (40, 1), (8, 1), (12, 1), (96, 3), (160, 5), (92, 4), (116, 4)],
)
def test_heads_divide_the_channels(dim: int, heads: int) -> None:
    assert heads_for(dim) == heads


def test_unknown_mixers_and_options_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"no token mixer 'atconv2'; did you mean atconv\?"):
        create_mixer("atconv2", 8)
    with pytest.raises(ValueError, match=r"no token mixer 'xyzzy'\. There are atconv,"):
        create_mixer("xyzzy", 8)
    with pytest.raises(ValueError, match=r"attention does not take .*kernel_size"):
        create_mixer("attention", 8, kernel_size=3)
    with pytest.raises(ValueError, match="shift must lie in 0 … window − 1"):
        create_mixer("window_attention", 8, window=3, shift=3)
    for name in ("depthwise", "neighborhood_attention", "involution", "condconv", "pooling"):
        with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
            create_mixer(name, 8, kernel_size=4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spatial_reduction_attention", {"reduction": 0}, "reduction must be at least 1, got 0"),
        ("attention", {"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ("window_attention", {"window": 0}, "window must be at least 1, got 0"),
        ("involution", {"reduction": 0}, "reduction must be at least 1, got 0"),
        ("condconv", {"experts": 0}, "experts must be at least 1, got 0"),
    ],
)
def test_options_that_make_no_mixer_are_rejected(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer(name, 8, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(8, 4, 4), (2, 16, 8), (2, 4, 4, 8), (2, 7, 4, 4)])
def test_inputs_other_than_maps_of_its_channels_are_rejected(form: str, shape: tuple[int, ...]) -> None:
    name, options = FORMS[form]
    with pytest.raises(ValueError, match=r"takes (maps )?B 8 H W, got \("):
        create_mixer(name, 8, **options)(torch.zeros(shape))


@pytest.mark.parametrize("form", FORMS)
def test_zero_channels_are_rejected(form: str) -> None:
    name, options = FORMS[form]
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        create_mixer(name, 0, **options)


@pytest.mark.parametrize("form", FORMS)
def test_mixers_are_built_on_a_device_and_in_a_dtype(form: str) -> None:
    name, options = FORMS[form]
    mixer = create_mixer(name, 16, device="meta", dtype=torch.bfloat16, **options)
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in mixer.parameters())
    assert all(buffer.is_meta for buffer in mixer.buffers())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (2, 3)])
def test_mixers_run_without_data(form: str, size: Position) -> None:
    name, options = FORMS[form]
    mixer = create_mixer(name, 8, device="meta", **options)
    assert mixer(torch.empty(2, 8, *size, device="meta")).shape == (2, 8, *size)


class Scale(nn.Module):
    """A mixer that takes neither device nor dtype."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Power(Scale):
    def __init__(self, dim: int, exponent: int) -> None:
        super().__init__(dim)


def test_a_mixer_may_leave_out_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIXERS, "scale", Mixer(Scale, "", ""))
    mixer = create_mixer("scale", 8, device="meta", dtype=torch.bfloat16)
    assert [(p.is_meta, p.dtype) for p in mixer.parameters()] == [(True, torch.bfloat16)]
    model = timm.create_model("attnet_xxs", token_mixer="scale")
    assert isinstance(model.stages[0].blocks[0].token_mixer, Scale)


def test_a_mixer_that_needs_an_option_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIXERS, "power", Mixer(Power, "", ""))
    with pytest.raises(ValueError, match=r"power is not built from dim = 8 alone: .*missing .*'exponent'"):
        create_mixer("power", 8)
    create_mixer("power", 8, exponent=2)


@pytest.mark.parametrize("token_mixer", [Scale, [Scale] * 4])
def test_a_class_is_no_name_of_a_mixer(token_mixer: Any) -> None:
    with pytest.raises(TypeError, match=r"given by its name, got <class .*Scale.*MIXERS\[name\]"):
        timm.create_model("attnet_xxs", token_mixer=token_mixer)


@pytest.mark.parametrize("name", MIXERS)
def test_an_option_of_no_mixer_is_rejected_by_every_mixer(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} does not take .*wings"):
        create_mixer(name, 8, wings=2)


@pytest.mark.parametrize("dim", [6, 7, 30])
def test_rotary_positions_ask_for_heads_that_4_divides(dim: int) -> None:
    with pytest.raises(ValueError, match=f"{dim} channels make heads of"):
        create_mixer("attention", dim, rope=True)


def test_the_documents_table_is_true() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guides" / "mixers.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines]
    table = rows[1:]
    assert list(dict.fromkeys(row[0] for row in table)) == list(MIXERS)
    for name, options, cost, parameters, macs, source in table:
        mixer: Any = create_mixer(name, 64, **ast.literal_eval(options or "{}"))
        assert cost == MIXERS[name].cost
        assert options or source == MIXERS[name].source
        assert int(parameters.replace(",", "")) == sum(p.numel() for p in mixer.parameters())
        assert float(macs) == pytest.approx(mixer.macs(14, 14) / 1e6, abs=0.005)


def test_parameters_are_those_of_the_formulas() -> None:
    channels, attention = 64, 4 * 64**2 + 4 * 64
    expected = {
        "atconv": 3 * (channels**2 + channels) + 9 * 9 + 9 + channels,
        "atconv with neither": 2 * (channels**2 + channels) + 9 * channels,
        "attention": attention,
        "linear_attention": attention,
        "window_attention": attention + 2 * 13**2,
        "spatial_reduction_attention": attention + 4 * channels**2 + channels + 2 * channels,
        "depthwise 7×7": 50 * channels,
        "condconv": 4 * (channels + 1) + 4 * (9 * channels + channels),
        "involution": 16 * (channels + 1) + 2 * 16 + 49 * 4 * 17,
        "identity": 0,
    }
    for form, count in expected.items():
        name, options = FORMS[form]
        assert sum(p.numel() for p in create_mixer(name, channels, **options).parameters()) == count, form
