"""Mixers and models on the Triton kernels: torch's tools go on working, with equal results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atconv import ATConv1d, ATConv2d, ATConv3d, ATConvTokens, functional
from atconv.analysis.routing import collect_kernels, detach_kernels
from atconv.ops.backend import Backend, use_backend
from support.helpers import assert_close, randomize, tiny_attnet

pytest.importorskip("triton")

from atconv.ops import triton_conv, triton_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MIXERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "map": (lambda: ATConv2d(6), (2, 6, 3, 4)),
    "tokens": (lambda: ATConvTokens(6, num_prefix_tokens=1), (2, 10, 6)),
    "static": (lambda: ATConv2d(6, routing=False), (2, 6, 3, 4)),
    "without inhibition": (lambda: ATConv2d(6, inhibition=False), (1, 6, 3, 4)),
    "a kernel size for each axis": (lambda: ATConv2d(6, kernel_size=(1, 5)), (2, 6, 3, 4)),
    "groups": (lambda: ATConv2d(6, kernel_groups=2, kernel_bias=True), (2, 6, 3, 4)),
    "grid": (lambda: ATConv2d(6, context_grid=True), (2, 6, 3, 4)),
    "sequence": (lambda: ATConv1d(6, kernel_size=5), (2, 6, 11)),
    "sequence of tokens": (lambda: ATConvTokens(6, axes=1, num_prefix_tokens=1), (2, 8, 6)),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "volume": (lambda: ATConv3d(6), (1, 6, 2, 3, 4)),
    "stride": (lambda: ATConv2d(6, stride=2), (1, 6, 3, 4)),
    "dilation": (lambda: ATConv2d(6, dilation=2), (1, 6, 3, 4)),
    "padding": (lambda: ATConv1d(6, padding_mode="reflect"), (1, 6, 9)),
    "causal": (lambda: ATConv1d(6, causal=True), (1, 6, 9)),
}


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels that ran."""
    programs: list[str] = []
    launch = triton_conv._launch

    def counted(x: Tensor, rows: int, columns: int, program: str) -> Any:
        programs.append(program)
        return launch(x, rows, columns, program)

    monkeypatch.setattr(triton_conv, "_launch", counted)
    with use_backend("triton"):
        yield programs


def mixer_and_input(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    make, shape = MIXERS[name]
    mixer = randomize(make()).to(DEVICE, dtype)
    return mixer, torch.randn(shape, device=DEVICE, dtype=dtype)


def results(backend: Backend, model: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Output, and the gradients of input and parameters."""
    x = x.detach().requires_grad_()
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    with use_backend(backend):
        y = model(x)
        return [y, *torch.autograd.grad(y, [x, *parameters], y.detach().float().cos().to(y.dtype))]


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_equal_eager_ones(name: str, launches: list[str]) -> None:
    mixer, x = mixer_and_input(name)
    actual = results("triton", mixer, x)
    assert launches == ["convolve", "convolve", "correlate"]
    for a, e in zip(actual, results("eager", mixer, x), strict=True):
        assert_close(a, e, 1e-12)
    assert len(launches) == 3


@pytest.mark.parametrize("name", OTHERS)
def test_pytorchs_operators_convolve_where_the_kernels_do_not(name: str, launches: list[str]) -> None:
    make, shape = OTHERS[name]
    mixer, x = randomize(make()).to(DEVICE).double(), torch.randn(shape, device=DEVICE, dtype=torch.float64)
    for a, e in zip(results("triton", mixer, x), results("eager", mixer, x), strict=True):
        assert_close(a, e, 1e-12)
    assert launches == []


def test_a_backbone_equals_the_eager_one(launches: list[str]) -> None:
    options = dict(depths=(1, 1, 0, 0), dims=(4, 6, 6, 6), glu_norm=True, ls_init_value=0.5)
    model = tiny_attnet(**options).to(DEVICE).double()
    x = torch.randn(1, 3, 24, 16, device=DEVICE, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        one = x.contiguous(memory_format=layout)
        for a, e in zip(results("triton", model, one), results("eager", model, one), strict=True):
            assert_close(a, e, 1e-10)
    assert len(launches) == 24  # a dynamic and a static convolution in each block


def test_a_channels_last_backbone_runs_on_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels that a backbone takes on a GPU: those of float64 above are others."""
    programs = []
    launch = triton_rows._launch

    def counted(*args: Any) -> Any:
        programs.append(args[-1])
        return launch(*args)

    monkeypatch.setattr(triton_rows, "_launch", counted)
    options = dict(depths=(1, 1, 0, 0), dims=(4, 6, 6, 6), glu_norm=True, ls_init_value=0.5)
    model = tiny_attnet(**options).to(DEVICE)
    x = torch.randn(1, 3, 24, 16, device=DEVICE).contiguous(memory_format=torch.channels_last)
    actual = results("triton", model, x)
    assert (programs.count("convolve"), programs.count("correlate")) == (8, 4)
    for a, e in zip(actual, results("eager", model.double(), x.double()), strict=True):
        assert_close(a.double(), e, 1e-4)


def test_autocast_computes_in_half_precision(launches: list[str]) -> None:
    mixer, x = mixer_and_input("map", torch.float32)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        y = mixer(x)
    assert y.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y.float().square().mean(), list(mixer.parameters()))
    assert launches == ["convolve", "convolve", "correlate"]
    with use_backend("eager"):
        expected = torch.autograd.grad(mixer(x).square().mean(), list(mixer.parameters()))
    for a, e in zip(gradients, expected, strict=True):
        assert_close(a, e, 0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_gives_functions_the_dtype_that_pytorchs_operators_give(dtype: torch.dtype) -> None:
    inputs = [torch.randn(2, 6, 5, 5, dtype=dtype, device=DEVICE), torch.randn(2, 6, 3, 3, device=DEVICE)]
    y = {}
    for backend in ("eager", "triton"):
        with use_backend(backend), torch.autocast(DEVICE.type, torch.bfloat16):
            y[backend] = functional.dynamic_depthwise_conv(*inputs)
    assert y["triton"].dtype == y["eager"].dtype
    assert_close(y["triton"], y["eager"], 0.02)


@pytest.mark.slow
def test_a_backbone_trains_under_autocast() -> None:
    model = tiny_attnet(depths=(1, 1, 0, 0), dims=(8, 8, 8, 8), glu_norm=True, ls_init_value=0.5).to(DEVICE)
    # Of two values, which 24 × 16 leave behind the last stage, batch norm has no gradient.
    x = torch.randn(2, 3, 64, 32, device=DEVICE)
    expected = results("eager", model, x)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        halves = {backend: results(backend, model, x) for backend in ("eager", "triton")}
    names = ["output", "input", *(name for name, _ in model.named_parameters())]
    for name, e, *pair in zip(names, expected, *halves.values(), strict=True):
        of_eager, of_triton = (float((a - e).detach().norm() / e.detach().norm()) for a in pair)
        assert of_triton < 3 * of_eager + 0.05, (name, of_eager, of_triton)


@pytest.mark.usefixtures("reset_compiler")
@pytest.mark.parametrize("name", ["map", "tokens", "sequence"])
def test_compiled_without_graph_break(name: str, launches: list[str]) -> None:
    mixer, x = mixer_and_input(name)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    actual = results("triton", lambda x: compiled(x), x)
    assert launches == ["convolve", "convolve", "correlate"]
    for a, e in zip(actual, results("eager", lambda x: mixer(x), x), strict=True):
        assert_close(a, e, 1e-12)


@pytest.mark.usefixtures("reset_compiler")
@pytest.mark.parametrize("transform", ["jvp", "vmap"])
def test_compiled_transforms_of_functions_work(transform: str, launches: list[str]) -> None:
    mixer, x = mixer_and_input("map")
    if transform == "vmap":
        x, transformed = torch.stack([x, 2 * x]), torch.vmap(lambda x: mixer(x))
    else:
        transformed = lambda x: torch.func.jvp(mixer, (x,), (x.cos(),))[1]  # noqa: E731
    actual = torch.compile(transformed, backend="aot_eager", fullgraph=True)(x)
    assert launches == []
    with use_backend("eager"):
        assert_close(actual, transformed(x), 1e-12)


@pytest.mark.usefixtures("reset_compiler")
@torch.no_grad()
def test_one_trace_serves_all_shapes() -> None:
    mixer, _ = mixer_and_input("map")
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(torch.randn(2, 6, 3, 4, device=DEVICE, dtype=torch.float64))
    with torch.compiler.set_stance("fail_on_recompile"):
        x = torch.randn(3, 6, 5, 2, device=DEVICE, dtype=torch.float64)
        assert_close(compiled(x), mixer(x), 1e-12)


def total(mixer: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: mixer(x).sin().sum((0, 1))


@pytest.mark.parametrize(
    "transform", [torch.func.jacrev, torch.func.jacfwd, torch.func.hessian, torch.vmap, "jvp"]
)
def test_transforms_of_functions_work(transform: Any) -> None:
    mixer, x = mixer_and_input("without inhibition")
    if transform is torch.vmap:
        transformed, x = torch.vmap(mixer), torch.stack([x, 2 * x])
    elif transform == "jvp":
        transformed = lambda x: torch.func.jvp(total(mixer), (x,), (x.cos(),))[1]  # noqa: E731
    else:
        transformed = transform(lambda x: total(mixer)(x).sum())
    actual = transformed(x)
    with use_backend("eager"):
        assert_close(actual, transformed(x), 1e-12)


def test_exported_graphs_hold_pytorchs_operators() -> None:
    mixer, x = mixer_and_input("map", torch.float32)
    exported = torch.export.export(mixer, (x,))
    assert not any("atconv" in str(node.target) for node in exported.graph.nodes)
    assert_close(exported.module()(x), mixer(x), 1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:FutureWarning")
def test_traced_graphs_hold_pytorchs_operators() -> None:
    mixer, x = mixer_and_input("map", torch.float32)
    traced = torch.jit.trace(mixer, (x,))
    assert "atconv::" not in str(traced.inlined_graph)


def test_checkpointing_computes_again() -> None:
    mixer, x = mixer_and_input("map")

    def recomputed(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(mixer, x, use_reentrant=False)

    expected = results("triton", lambda x: mixer(x), x)
    assert all(torch.equal(a, e) for a, e in zip(results("triton", recomputed, x), expected, strict=True))


def test_analyses_see_the_kernels_that_are_used() -> None:
    mixer, x = mixer_and_input("map")
    model = nn.Sequential(mixer)
    with use_backend("eager"):
        assert_close(collect_kernels(model, x)["0"], mixer.kernels(x), 1e-12)
        with detach_kernels(model):
            expected = results("eager", lambda x: model(x), x)
    assert_close(collect_kernels(model, x)["0"], mixer.kernels(x), 1e-12)
    with detach_kernels(model):
        actual = results("triton", lambda x: model(x), x)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-12)
