"""The operator on one, two and three axes, with every option, against loops; and causal sequences."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from atconv import ATConv1d, ATConv2d, ATConv3d, ATConvTokens, functional
from support.helpers import assert_close, randomize

MODULES = {1: ATConv1d, 2: ATConv2d, 3: ATConv3d}
OPTIONS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (1, {"kernel_size": 5, "stride": 2, "padding_mode": "reflect", "context_bins": 7}),
    (1, {"dilation": 2, "kernel_groups": 2, "kernel_bias": True, "padding_mode": "circular"}),
    (2, {"out_channels": 3, "stride": 2}),
    (2, {"kernel_size": (3, 5), "dilation": (2, 1), "context_grid": True, "padding_mode": "replicate"}),
    (
        2,
        {
            "kernel_size": (1, 3),
            "stride": (1, 2),
            "kernel_groups": 1,
            "context_bins": 4,
            "context_grid": True,
        },
    ),
    (2, {"projections": False, "kernel_bias": True, "routing": True}),
    (2, {"routing": False, "stride": 3, "kernel_groups": 2, "padding_mode": "circular"}),
    (3, {"kernel_size": (1, 3, 3), "stride": (1, 2, 1), "out_channels": 2}),
    (3, {"context_grid": True, "inhibition": False, "dilation": (1, 1, 2)}),
    (3, {"routing": False, "projections": False, "bias": False}),
]
every_option = pytest.mark.parametrize(("axes", "options"), OPTIONS, ids=str)


def build(axes: int, options: dict[str, Any], dim: int = 4) -> nn.Module:
    return randomize(MODULES[axes](dim, **options)).double()


def image(axes: int, batch: int = 2, dim: int = 4, size: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dim, *range(size, size + axes), generator=generator, dtype=torch.float64)


# The operator once more, position by position.


def loop_context(x: np.ndarray, bins: int, grid: list[int] | None) -> np.ndarray:
    sizes = x.shape[2:]
    context = np.zeros((*x.shape[:2], bins))
    for i, cell in enumerate(np.ndindex(*grid) if grid else range(bins)):
        inside = []
        for number, position in enumerate(np.ndindex(*sizes)):
            spans = (
                zip(cell, grid, sizes, position, strict=True)
                if grid
                else [(cell, bins, math.prod(sizes), number)]
            )
            if all(math.floor(c * n / g) <= p < math.ceil((c + 1) * n / g) for c, g, n, p in spans):
                inside.append(x[(..., *position)])
        context[..., i] = np.mean(inside, axis=0)
    return context


def beyond(index: int, size: int, mode: str) -> int | None:
    """The position that stands for one beyond the border."""
    if 0 <= index < size:
        return index
    if mode == "reflect":
        return -index if index < 0 else 2 * (size - 1) - index
    return {"zeros": None, "circular": index % size, "replicate": min(max(index, 0), size - 1)}[mode]


def loop_route(
    x: np.ndarray, kernel: np.ndarray, stride: list[int], dilation: list[int], mode: str
) -> np.ndarray:
    sizes, group = x.shape[2:], x.shape[1] // kernel.shape[1]
    y = np.zeros((*x.shape[:2], *(math.ceil(n / s) for n, s in zip(sizes, stride, strict=True))))
    for b, c, *place in np.ndindex(y.shape):
        for tap in np.ndindex(*kernel.shape[2:]):
            source = [
                beyond(s * p + d * (t - k // 2), n, mode)
                for s, p, d, t, k, n in zip(
                    stride, place, dilation, tap, kernel.shape[2:], sizes, strict=True
                )
            ]
            if None not in source:
                y[(b, c, *place)] += kernel[(b, c // group, *tap)] * x[(b, c, *source)]
    return y


def loop_operator(module: Any, x: Tensor) -> np.ndarray:
    w = {name: tensor.numpy() for name, tensor in module.state_dict().items()}

    def project(name, x):
        return (
            np.tensordot(w[f"{name}.weight"].reshape(w[f"{name}.weight"].shape[:2]), x, (1, 1)).swapaxes(0, 1)
            + w.get(f"{name}.bias", np.zeros(1)).reshape(-1, *[1] * (x.ndim - 2))
            if f"{name}.weight" in w
            else x
        )

    if module.routing:
        context = loop_context(x.numpy(), module.context_bins, module._context_cells)
        mixed = np.einsum("gc,bcn->bgn", w["context_proj.weight"], context)
        mixed += w["context_proj.bias"][:, None]
        active = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))(mixed)
        kernel = active @ w["kernel_gen.weight"].T + w.get("kernel_gen.bias", 0) + w.get("kernel_bias", 0)
        kernel = kernel.reshape(*kernel.shape[:2], *module._kernel_sizes)
    else:
        kernel = np.repeat(w["static_kernel"][None], len(x), 0)
    if "alpha" in w:
        strength = (1 / (1 + np.exp(-w["alpha"]))).reshape(-1, *[1] * (kernel.ndim - 2))
        kernel = kernel - strength * kernel.mean(axis=tuple(range(2, kernel.ndim)), keepdims=True)
    value = project("value_proj", x.numpy())
    y = project("proj", loop_route(value, kernel, module.stride, module.dilation, module.padding_mode))
    return y + w["bias"].reshape(-1, *[1] * (y.ndim - 2)) if "bias" in w else y


@every_option
@torch.no_grad()
def test_modules_equal_loops(axes: int, options: dict[str, Any]) -> None:
    module, x = build(axes, options), image(axes)
    assert_close(module(x), torch.from_numpy(loop_operator(module, x)), 1e-12)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
@torch.no_grad()
def test_modules_equal_loops_with_any_options(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    per_axis = lambda values: data.draw(st.tuples(*[st.sampled_from(values)] * axes))  # noqa: E731
    options = {
        "out_channels": data.draw(st.integers(1, 5)),
        "kernel_size": per_axis([1, 3] if axes == 3 else [1, 3, 5]),
        "stride": per_axis([1, 2, 3]),
        "dilation": per_axis([1, 2]),
        "padding_mode": data.draw(st.sampled_from(["zeros", "replicate"])),
        "routing": data.draw(st.booleans()),
        "inhibition": data.draw(st.booleans()),
        "kernel_groups": data.draw(st.sampled_from([1, 2, 4])),
        "kernel_bias": data.draw(st.booleans()),
        "context_bins": data.draw(st.integers(1, 12)),
    }
    module = build(axes, options)
    x = torch.randn(2, 4, *data.draw(st.tuples(*[st.integers(1, 5)] * axes)), dtype=torch.float64)
    assert_close(module(x), torch.from_numpy(loop_operator(module, x)), 1e-11)


def call_function(module: Any, x: Tensor, **options: Any) -> Tensor:
    """`functional.atconv` with the weights and options of a module."""
    w = module.state_dict()
    return functional.atconv(
        x,
        w.get("context_proj.weight"),
        w.get("context_proj.bias"),
        w.get("kernel_gen.weight"),
        w.get("kernel_bias", w.get("kernel_gen.bias")),
        *(w.get(name) for name in ("alpha", "value_proj.weight", "value_proj.bias", "proj.weight")),
        w.get("proj.bias", w.get("bias")),
        static_kernel=w.get("static_kernel"),
        kernel_size=module._kernel_sizes,
        context_grid=module._context_cells,
        stride=module.stride,
        dilation=module.dilation,
        padding_mode=module.padding_mode,
        **options,
    )


@every_option
def test_the_function_takes_every_option_of_the_modules(axes: int, options: dict[str, Any]) -> None:
    module, x = build(axes, options), image(axes)
    assert_close(call_function(module, x), module(x), 1e-12)


@every_option
def test_macs_are_those_that_torch_counts(axes: int, options: dict[str, Any]) -> None:
    module, x = build(axes, options), image(axes, batch=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    assert counter.get_total_flops() == 2 * module.macs(*x.shape[2:])


@pytest.mark.parametrize(("axes", "options"), OPTIONS[1:7], ids=str)
def test_gradients(axes: int, options: dict[str, Any]) -> None:
    module, x = build(axes, options, dim=4), image(axes, batch=1, size=3).requires_grad_()
    parameters = dict(module.named_parameters())

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *parameters.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *parameters.values()), fast_mode=True)


@pytest.mark.usefixtures("reset_compiler")
@pytest.mark.parametrize(("axes", "options"), [OPTIONS[i] for i in (1, 3, 8)], ids=str)
@torch.no_grad()
def test_one_trace_serves_all_sizes(axes: int, options: dict[str, Any]) -> None:
    module = build(axes, options).float()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(image(axes).float())
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch, size in [(3, 6), (5, 9)]:
            x = image(axes, batch, size=size).float()
            assert_close(compiled(x), module(x), 1e-5)


@pytest.mark.parametrize(("axes", "options"), [OPTIONS[i] for i in (2, 4, 5, 7, 9)], ids=str)
@torch.no_grad()
def test_exported_programs_take_other_sizes(axes: int, options: dict[str, Any]) -> None:
    module = build(axes, options).eval()
    dims = dict.fromkeys((0, *range(2, axes + 2)), torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (image(axes, size=6),), dynamic_shapes=(dims,))
    x = image(axes, batch=3, size=9)
    assert_close(program.module()(x), module(x), 1e-12)


@pytest.mark.parametrize(
    ("axes", "options"),
    [pytest.param(*OPTIONS[i], marks=pytest.mark.slow if i in (1, 4) else ()) for i in (1, 2, 4, 8)],
    ids=str,
)
@torch.no_grad()
def test_onnx_files_take_other_sizes(axes: int, options: dict[str, Any], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = build(axes, options).float().eval()
    dims = dict.fromkeys((0, *range(2, axes + 2)), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(
        module,
        (image(axes, size=6).float(),),
        dynamo=True,
        dynamic_shapes=(dims,),
        opset_version=20,
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "module.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "module.onnx")
    x = image(axes, batch=3, size=9).float()
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(y), module(x), 1e-5)


@every_option
def test_autocast_and_half_precision_train(axes: int, options: dict[str, Any]) -> None:
    module, x = build(axes, options).float(), image(axes).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert_close(y, module(x), 3e-2)


def test_groups_share_the_kernel_of_their_mean_projection() -> None:
    """A grouped mixer is the plain one whose rows of W_k and α are equal within a group."""
    grouped, plain = build(2, {"kernel_groups": 2}), build(2, {})
    state = grouped.state_dict()
    for name in ("context_proj.weight", "context_proj.bias", "alpha"):
        state[name] = state[name].repeat_interleave(2, dim=0)
    plain.load_state_dict(state)
    x = image(2)
    assert_close(grouped(x), plain(x), 1e-12)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_are_those_of_torch(mode: str) -> None:
    options = {"routing": False, "inhibition": False, "projections": False, "bias": False}
    static = build(2, options | {"padding_mode": mode})
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode, groups=4, bias=False).double()
    conv.weight = nn.Parameter(static.static_kernel.detach()[:, None])
    assert_close(static(image(2)), conv(image(2)), 1e-13)


@pytest.mark.parametrize(
    ("axes", "options", "message"),
    [
        (2, {"kernel_size": (3, 4)}, "kernel_size must be odd"),
        (2, {"kernel_size": (3, 3, 3)}, "kernel_size takes one number, or 2, got"),
        (2, {"kernel_size": (3,)}, "kernel_size takes one number, or 2, got"),
        (1, {"stride": 0}, "stride must be 1 or more"),
        (3, {"dilation": (1, 1)}, "dilation must be 1 or more, or 3 such numbers"),
        (2, {"padding_mode": "mirror"}, "padding_mode must be one of zeros, reflect"),
        (2, {"kernel_groups": 3}, "kernel_groups must divide 4 channels, got 3"),
        (2, {"kernel_groups": 0}, "kernel_groups must divide 4 channels, got 0"),
        (2, {"context_bins": 0}, "context_bins must be at least 1, got 0"),
        (2, {"context_bins": 5, "context_grid": True}, "context_bins must be a number to the power of 2"),
        (2, {"out_channels": 0}, "out_channels must be at least 1, got 4 and 0"),
        (2, {"projections": False, "out_channels": 8}, "without projections there are 4 channels, not 8"),
        (1, {"chunk": 2}, "chunk must be 1 or more, and 1 unless causal, got 2"),
        (1, {"causal": True, "stride": 2}, "causal takes stride 1"),
        (1, {"causal": True, "padding_mode": "circular"}, "causal takes stride 1, padding_mode zeros"),
        (2, {"causal": True}, "and sequences alone: ATConv1d, or ATConvTokens with axes=1"),
    ],
)
def test_options_that_do_not_fit_are_rejected(axes: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODULES[axes](4, **options)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", ["kernel_size", "stride", "dilation", "context_bins"])
def test_numbers_that_are_not_whole_are_rejected(axes: int, name: str) -> None:
    for value in (3.0, "3", True, [1.5] * axes, [True] * axes):
        with pytest.raises(TypeError, match=f"{name} takes whole numbers, got"):
            MODULES[axes](4, **{name: value})
    for value in (True, 1.5, "3", [True] * axes):
        with pytest.raises(TypeError, match="stride takes whole numbers, got"):
            functional.dynamic_depthwise_conv(image(axes), torch.ones(2, 4, *[3] * axes), stride=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("axes", [1, 2, 3])
@torch.no_grad()
def test_the_signature_is_that_of_a_convolution(axes: int) -> None:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    x = image(axes).float()
    for positional, named in [
        ((4, 6, 5, 2, 2), {}),
        ((4, 6, 3, 1, 1), {}),
        ((4, 6, 3), {"padding": "same", "dilation": 2}),
        ((4, 6, 3, 2), {"padding": [2] * axes, "dilation": 2}),
    ]:
        assert MODULES[axes](*positional, **named)(x).shape == convolution(*positional, **named)(x).shape


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_options_of_a_convolution_are_named_and_none_is_taken_for_another(axes: int) -> None:
    with pytest.raises(TypeError, match="positional"):
        MODULES[axes](4, 6, 5, 1, 2, 1)
    for options in (
        {"padding": 0},
        {"padding": [1, 2, 3]},
        {"padding": "valid"},
        {"stride": 2, "padding": "same"},
    ):
        with pytest.raises(ValueError, match=r"borders are padded by \[1.*leave it out; `padding_mode`"):
            MODULES[axes](4, **options)
    with pytest.raises(ValueError, match="borders are padded before a sequence alone, got padding=2"):
        ATConv1d(4, padding=2, causal=True)
    with pytest.raises(TypeError, match="takes no groups: `kernel_groups`"):
        MODULES[axes](4, groups=4)
    with pytest.raises(TypeError, match="takes no nonsense: there is no such option"):
        MODULES[axes](4, nonsense=4)
    names = inspect.signature(MODULES[axes]).parameters.keys()
    assert {"stride", "dilation", "kernel_groups", "device"} <= names


@every_option
def test_a_printed_mixer_names_what_is_not_by_default(axes: int, options: dict[str, Any]) -> None:
    text = MODULES[axes](4, **options).extra_repr()
    plain = MODULES[axes](4).extra_repr()
    for name in ("context_bins", "kernel_groups", "kernel_bias", "projections"):
        assert name not in plain
        if name in options:
            assert f"{name}={options[name]}" in text


@pytest.mark.parametrize(("mode", "size"), [("reflect", 2), ("circular", 1)])
def test_axes_too_short_for_their_padding_are_rejected(mode: str, size: int) -> None:
    module = ATConv2d(4, kernel_size=5, padding_mode=mode)
    with pytest.raises(
        ValueError, match=rf"padding_mode='{mode}' takes axes of at least .* got \[{size}, 7\]"
    ):
        module(torch.randn(1, 4, size, 7))


# Tokens.


@pytest.mark.parametrize(("axes", "grid"), [(1, (7,)), (2, (3, 5)), (3, (2, 3, 4))])
@pytest.mark.parametrize("prefix", [0, 2])
def test_tokens_equal_the_map_on_every_number_of_axes(axes: int, grid: tuple[int, ...], prefix: int) -> None:
    module = build(axes, {"kernel_groups": 2})
    tokens = ATConvTokens(4, axes=axes, kernel_groups=2, num_prefix_tokens=prefix).double()
    tokens.load_state_dict({n: w.flatten(1) if w.ndim > 2 else w for n, w in module.state_dict().items()})
    x = torch.randn(2, 4, *grid, dtype=torch.float64)
    prefixed = torch.cat([torch.randn(2, prefix, 4, dtype=torch.float64), x.flatten(2).mT], dim=1)
    y = tokens(prefixed, grid)[:, prefix:]
    assert_close(y.mT.unflatten(2, grid), module(x), 1e-12)


def test_grids_of_one_and_three_axes_are_inferred() -> None:
    assert ATConvTokens(4, axes=1)(torch.randn(1, 11, 4)).shape == (1, 11, 4)
    cube = ATConvTokens(4, axes=3)
    x = torch.randn(1, 27, 4)
    assert torch.equal(cube(x), cube(x, (3, 3, 3)))
    with pytest.raises(ValueError, match=r"-1 tokens do not fill .*tokens come before them \(now 3\)"):
        ATConvTokens(4, axes=1, num_prefix_tokens=3)(torch.randn(1, 2, 4))
    with pytest.raises(ValueError, match="28 tokens are not a cube; pass grid_size"):
        cube(torch.randn(1, 28, 4))
    with pytest.raises(ValueError, match="a grid has 1, 2 or 3 axes, got 4"):
        ATConvTokens(4, axes=4)
    with pytest.raises(ValueError, match="stride and out_channels are for maps"):
        ATConvTokens(4, stride=2)
    with pytest.raises(TypeError, match="num_prefix_tokens takes whole numbers, got True"):
        ATConvTokens(4, num_prefix_tokens=True)


# Causal sequences.

CAUSAL: list[dict[str, Any]] = [
    {},
    {"chunk": 4},
    {"kernel_size": 5, "dilation": 3, "chunk": 3, "kernel_groups": 2, "out_channels": 3},
    {"context_bins": 1, "kernel_bias": True},
    {"routing": False, "dilation": 2},
    {"kernel_size": 1, "inhibition": False, "projections": False},
]
every_causal = pytest.mark.parametrize("options", CAUSAL, ids=str)


def loop_causal(module: Any, x: Tensor) -> Tensor:
    """Position by position: context of the past, kernel, weighted past."""
    (dilation,), (size,), bins, chunk = (
        module.dilation,
        module._kernel_sizes,
        module.context_bins,
        module.chunk,
    )
    values, outputs = module.value_proj(x), []
    for t in range(x.shape[2]):
        start = t // chunk * chunk
        means = []
        for i in range(bins):
            memory = 1.0 if i == bins - 1 else 1 - 2.0**-i
            weights = torch.tensor([memory ** (start - s) for s in range(start + 1)], dtype=x.dtype)
            means.append((x[..., : start + 1] * weights).sum(-1) / weights.sum())
        if module.routing:
            kernel = module._context_to_kernel(torch.stack(means, dim=-1))
        else:
            kernel = module.static_kernel[None]
        kernel = functional.lateral_inhibition(kernel, module.alpha)
        kernel = kernel.repeat_interleave(x.shape[1] // kernel.shape[1], dim=1)
        taps = [(i, t - (size - 1 - i) * dilation) for i in range(size)]
        outputs.append(sum(kernel[..., i] * values[..., s] for i, s in taps if s >= 0))
    y = module.proj(torch.stack(outputs, dim=-1))
    return y if module.bias is None else y + module.bias[:, None]


@every_causal
@torch.no_grad()
def test_causal_mixers_equal_loops(options: dict[str, Any]) -> None:
    module, x = build(1, {"causal": True, **options}), image(1, size=11)
    assert_close(module(x), loop_causal(module, x), 1e-12)


@every_causal
@torch.no_grad()
def test_the_function_is_causal_too(options: dict[str, Any]) -> None:
    module, x = build(1, {"causal": True, **options}), image(1, size=11)
    assert_close(call_function(module, x, causal=True, chunk=module.chunk), module(x), 1e-12)
    with pytest.raises(ValueError, match="causal takes stride 1"):
        functional.atconv(x, *[None] * 9, static_kernel=torch.ones(4, 3), causal=True, stride=2)


@every_causal
@torch.no_grad()
def test_no_output_depends_on_the_future(options: dict[str, Any]) -> None:
    module, x = build(1, {"causal": True, **options}), image(1, size=13)
    y = module(x)
    for t in range(1, 13):
        changed = x.clone()
        changed[..., t:] += 1 + torch.randn(2, 4, 13 - t, dtype=x.dtype)
        difference = (module(changed) - y).abs().amax((0, 1))
        assert difference[:t].max() == 0
        assert difference[t] > 0


def causal_tokens(options: dict[str, Any], prefix: int = 0) -> tuple[Any, Any]:
    """A causal mixer of sequences, and the same of tokens."""
    options = {name: value for name, value in options.items() if name != "out_channels"}
    module = build(1, {"causal": True, **options})
    tokens = ATConvTokens(4, axes=1, causal=True, num_prefix_tokens=prefix, **options).double()
    tokens.load_state_dict({n: w.squeeze(-1) if "proj" in n else w for n, w in module.state_dict().items()})
    return module, tokens


@every_causal
@torch.no_grad()
def test_causal_tokens_equal_the_sequence_and_their_steps(options: dict[str, Any]) -> None:
    module, tokens = causal_tokens(options, prefix=2)
    x, prefix = image(1, size=12), torch.randn(2, 2, 4, dtype=torch.float64)
    y = tokens(torch.cat([prefix, x.mT], dim=1))
    assert_close(y[:, 2:].mT, module(x), 1e-12)
    values = tokens.value_proj(prefix)
    expected = tokens.proj(torch.stack([values[:, 0], values.mean(1)], dim=1))
    assert_close(y[:, :2], expected + (0 if tokens.bias is None else tokens.bias), 1e-12)
    state = tokens.initial_state(2)
    for t in range(12):
        step, state = tokens.step(x[..., t], state)
        assert_close(step, y[:, 2 + t], 1e-12)


@torch.no_grad()
def test_no_token_depends_on_those_after_it() -> None:
    _, tokens = causal_tokens({"chunk": 3}, prefix=2)
    x = torch.randn(2, 12, 4, dtype=torch.float64)
    y = tokens(x)
    for t in range(1, 12):
        changed = x.clone()
        changed[:, t:] += 1 + torch.rand(2, 12 - t, 4, dtype=x.dtype)
        difference = (tokens(changed) - y).abs().amax((0, 2))
        assert difference[:t].max() == 0
        assert difference[t] > 0
    with pytest.raises(ValueError, match="sequences alone: ATConv1d, or ATConvTokens with axes=1"):
        ATConvTokens(4, causal=True)
    with pytest.raises(ValueError, match="ATConvTokens: only a causal mixer has a state"):
        ATConvTokens(4).initial_state(1)


@every_causal
@torch.no_grad()
def test_kernels_are_those_of_every_chunk(options: dict[str, Any]) -> None:
    module, x = build(1, {"causal": True, **options}), image(1, size=11)
    kernels, chunks = module.kernels(x), -(-11 // module.chunk)
    if not module.routing:
        kernels, chunks = kernels.unsqueeze(2), 1
    assert kernels.shape[2:] == (chunks, module._kernel_sizes[0])
    mean = 1 if module.alpha is None else 1 - torch.sigmoid(module.alpha)[:, None]
    raw = module.raw_kernels(x)[0].unflatten(0, (-1, chunks)).transpose(1, 2)
    assert_close(kernels.mean(-1), mean * raw.mean(-1), 1e-12)


@every_causal
@torch.no_grad()
def test_steps_equal_the_whole_sequence(options: dict[str, Any]) -> None:
    module, x = build(1, {"causal": True, **options}), image(1, size=12)
    state, outputs = module.initial_state(2), []
    for t in range(12):
        y, state = module.step(x[..., t], state)
        outputs.append(y)
    assert_close(torch.stack(outputs, dim=-1), module(x), 1e-12)


def test_running_means_stay_exact_on_long_sequences() -> None:
    x = torch.randn(1, 2, 4097)
    context = functional.causal_context(x, 3)
    count = torch.arange(1, 4098)
    assert_close(context[..., 2].mT, x[0].double().cumsum(1) / count, 1e-6)
    assert torch.equal(context[..., 0].mT, x[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_long_sequences_in_half_precision_keep_their_means(dtype: torch.dtype) -> None:
    module, x = build(1, {"causal": True}).float(), 2 + image(1, batch=1, size=400).float()
    expected = module(x)
    module, x = module.to(dtype), x.to(dtype)
    state = module.initial_state(1)
    for t in range(400):
        y, state = module.step(x[..., t], state)
    assert_close(y, expected[..., -1], 3e-2)
    assert_close(module(x), expected, 3e-2)
    assert_close(state.sums[..., -1], x.double().sum(2), 1e-5)
    means = functional.causal_context(torch.full((1, 1, 70_000), 2.0, dtype=dtype), 1)
    assert torch.equal(means, torch.full_like(means, 2.0))


@every_causal
def test_causal_mixers_train_and_compile(options: dict[str, Any]) -> None:
    module, x = build(1, {"causal": True, **options}), image(1, batch=1, size=6).requires_grad_()
    assert torch.autograd.gradcheck(module, (x,), fast_mode=True)
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x), module(x), 1e-12)


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), {"causal": True, "chunk": 3}], ids=str
)
@torch.no_grad()
def test_sequences_of_tokens_export_for_every_length(options: dict[str, Any], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    tokens = randomize(ATConvTokens(4, axes=1, num_prefix_tokens=1, **options)).eval()
    dims = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(tokens, (torch.randn(2, 13, 4),), dynamic_shapes=dims)
    file = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
    assert file is not None
    file.save(tmp_path / "tokens.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "tokens.onnx")
    for batch, length in [(3, 26), (1, 6)]:
        x = torch.randn(batch, length, 4)
        assert_close(program.module()(x), tokens(x), 1e-5)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_close(torch.from_numpy(y), tokens(x), 1e-5)


EXPORTED = [CAUSAL[0], CAUSAL[2], CAUSAL[4]]


@pytest.mark.parametrize(
    "options", [EXPORTED[1], *(pytest.param(each, marks=pytest.mark.slow) for each in EXPORTED[::2])], ids=str
)
@torch.no_grad()
def test_causal_mixers_export_for_every_length(options: dict[str, Any], tmp_path: Path) -> None:
    module = build(1, {"causal": True, **options}).float().eval()
    dims = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    x = image(1, size=12).float()
    program = torch.export.export(module, (x,), dynamic_shapes=dims)
    file = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
    assert file is not None
    file.save(tmp_path / "causal.onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(tmp_path / "causal.onnx")
    for batch, size in [(3, 25), (1, 5)]:
        x = image(1, batch, size=size).float()
        expected = module(x)
        assert_close(program.module()(x), expected, 1e-5)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_close(torch.from_numpy(y), expected, 1e-5)
        x[..., 3:] = torch.nan
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_close(torch.from_numpy(y)[..., :3], expected[..., :3], 1e-5)


@pytest.mark.parametrize(
    ("options", "strict"),
    [
        ({}, False),
        ({"chunk": 4}, True),
        ({"routing": False}, False),
        pytest.param({}, True, marks=pytest.mark.slow),
        pytest.param({"chunk": 4}, False, marks=pytest.mark.slow),
        pytest.param({"routing": False}, True, marks=pytest.mark.slow),
    ],
    ids=str,
)
@torch.no_grad()
def test_causal_mixers_export_strictly_or_not(options: dict[str, Any], strict: bool) -> None:
    module, x = build(1, {"causal": True, **options}), image(1, size=12)
    dims = ({2: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(module, (x,), dynamic_shapes=dims, strict=strict)
    assert not any("bitwise" in str(node.target) for node in program.graph.nodes)  # Core ML has none
    for size in (5, 12, 33):
        x = image(1, size=size)
        expected = module(x)
        assert_close(program.module()(x), expected, 1e-12)
        for value in (torch.nan, torch.inf):
            broken = x.clone()
            broken[:, 0, 3:] = value
            for y in (program.module()(broken), module(broken)):
                assert_close(y[..., :3], expected[..., :3], 1e-12)
                assert not y[..., 3].isfinite().any()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("options", EXPORTED, ids=str)
@torch.no_grad()
def test_causal_mixers_are_traced(options: dict[str, Any]) -> None:
    module = build(1, {"causal": True, **options})
    traced = torch.jit.trace(module, image(1, size=7))
    for batch, size in [(3, 25), (1, 5)]:
        x = image(1, batch, size=size)
        assert_close(traced(x), module(x), 1e-12)


@every_causal
def test_causal_macs_are_those_that_torch_counts(options: dict[str, Any]) -> None:
    module, x = build(1, {"causal": True, **options}), image(1, batch=1, size=10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    means = module.context_bins if module.routing else 0
    products = 10 * 4 * (module._kernel_sizes[0] + means)  # elementwise: torch counts none of them
    assert counter.get_total_flops() == 2 * (module.macs(10) - products)


def test_only_causal_mixers_have_a_state() -> None:
    with pytest.raises(ValueError, match="only a causal mixer has a state"):
        ATConv1d(4).initial_state(1)
    with pytest.raises(ValueError, match="only a causal mixer has a state"):
        ATConv1d(4).step(torch.zeros(1, 4), ATConv1d(4, causal=True).initial_state(1))


@torch.no_grad()
def test_a_step_takes_a_position_and_a_state_of_its_own_mixer() -> None:
    mixer = ATConv1d(4, causal=True)
    state = mixer.initial_state(2)
    for shape in ((2, 3), (3, 4), (1, 4), (2, 4, 1)):
        with pytest.raises(ValueError, match=r"step takes a position of each sequence, 2 × 4 for this state"):
            mixer.step(torch.zeros(shape), state)
    with pytest.raises(TypeError, match=r"step takes torch.float32 as its state, got torch.float64"):
        mixer.step(torch.zeros(2, 4).double(), state)
    for other in ({"kernel_size": 5}, {"dilation": 2}, {"kernel_groups": 2}, {"context_bins": 2}):
        with pytest.raises(ValueError, match="the state is of another mixer"):
            mixer.step(torch.zeros(2, 4), ATConv1d(4, causal=True, **other).initial_state(2))  # type: ignore[arg-type]


def test_long_memories_forget_exactly() -> None:
    x, bins = image(1, batch=1, size=40), 31
    context = functional.causal_context(x, bins)
    for i in range(bins):
        memory = 1.0 if i == bins - 1 else 1 - 2.0**-i
        weights = torch.tensor([memory**back for back in range(39, -1, -1)], dtype=torch.float64)
        assert_close(context[-1:, :, i], (x * weights).sum(-1) / weights.sum(), 1e-13)


@pytest.mark.parametrize(
    ("x", "kernel", "chunk"),
    [
        ((2, 4, 6), (10, 4, 3), 1),
        ((2, 4, 6), (12, 3, 3), 1),
        ((2, 4, 6), (12, 4, 3), 2),
        ((2, 4, 6, 6), (12, 4, 3), 1),
        ((2, 4, 6), (2, 4, 6, 3), 1),
        ((2, 4, 6), (1, 4, 3), 0),
    ],
)
def test_causal_kernels_that_do_not_fit_are_rejected(x: Any, kernel: Any, chunk: int) -> None:
    with pytest.raises(ValueError, match=r"causal_depthwise_conv: a sequence .* takes kernels"):
        functional.causal_depthwise_conv(torch.zeros(x), torch.zeros(kernel), chunk=chunk)


def test_contexts_are_of_sequences_and_have_bins() -> None:
    with pytest.raises(ValueError, match="bins and chunk must be at least 1, got 0 and 1"):
        functional.causal_context(torch.zeros(1, 2, 3), 0)
    with pytest.raises(ValueError, match="causal_context takes a sequence B C N"):
        functional.causal_context(torch.zeros(1, 2, 3, 4), 3)
