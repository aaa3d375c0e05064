"""The Triton kernels over channels: on a GPU where there is one, else few rows in Triton's interpreter."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor

from atconv.ops.backend import use_backend
from atconv.ops.gated_product import gated_product
from atconv.ops.layer_norm import LayerNorm2d
from support.conv_loop import TOLERANCES, error

pytest.importorskip("triton")

from atconv.ops import triton_channels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHANNELS = (1, 3, 8, 40, 64, 129, 341)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COUNT = 30  # as none of them
EPS = 0.3  # so large that one that is left out is noticed


def plain_gate(gate: Tensor, value: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """In float64."""
    product = F.gelu(gate.double()) * value.double()
    return product, (product.square().sum(-1, keepdim=True) / COUNT + eps).rsqrt()


def triton_gate(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    return triton_channels.gated_product(*inputs, EPS, COUNT)


def make_rows(count: int, channels: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, channels, device=DEVICE).to(dtype).requires_grad_()


def with_gradients(
    function: Callable[..., Any], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor]:
    outputs = function(*inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    given = [c.to(y.dtype) for c, y in zip(cotangents, outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, inputs, given)]


def gate_cases(rows: int, channels: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    inputs = [make_rows(rows, channels, dtype) for _ in range(2)]
    # That of the inverse is large: its share of the gradients is divided by the channels.
    return inputs, [make_rows(rows, channels, dtype), make_rows(rows, 1, dtype) * COUNT**0.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_gated_products_equal_their_formula(channels: int, dtype: torch.dtype) -> None:
    rows = random.Random(channels).randint(1, 2 * 2048 // channels + 2)
    inputs, cotangents = gate_cases(min(rows, 300), channels, dtype)
    actual = with_gradients(triton_gate, inputs, cotangents)
    expected = with_gradients(plain_gate, inputs, cotangents)
    assert [a.dtype for a in actual] == [dtype] * 4
    assert max(map(error, actual, expected)) < TOLERANCES[dtype]


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = EPS) -> Tensor:
    """In float64."""
    centered = x.double() - x.double().mean(-1, keepdim=True)
    return (
        centered * (centered.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double() + bias.double()
    )


def triton_norm(*inputs: Tensor) -> Tensor:
    return triton_channels.layer_norm(*inputs, EPS, inputs[0].dtype)


def norm_cases(rows: int, channels: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Rows that lie around 3, with weights in full precision, as autocast has them. No means are zero."""
    full = torch.promote_types(dtype, torch.float32)
    x = (make_rows(rows, channels, dtype) + 3).detach().requires_grad_()
    affine = [(make_rows(1, channels, full)[0] + 1).detach().requires_grad_() for _ in range(2)]
    return [x, *affine], [make_rows(rows, channels, dtype) + 1]


def norm_errors(rows: int, channels: int, dtype: torch.dtype) -> list[float]:
    inputs, cotangents = norm_cases(rows, channels, dtype)
    actual = with_gradients(triton_norm, inputs, cotangents)
    expected = with_gradients(plain_norm, inputs, cotangents)
    assert [a.dtype for a in actual] == [dtype, *(t.dtype for t in inputs)]
    # The gradient of one channel's values is zero, and rounded.
    scales = [1e-30, float(cotangents[0].detach().abs().max()) if channels == 1 else 1e-30, 1e-30, 1e-30]
    return list(map(error, actual, expected, scales))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_norms_equal_their_formula(channels: int, dtype: torch.dtype) -> None:
    rows = random.Random(channels).randint(2, 2 * 2048 // channels + 2)
    errors = norm_errors(min(rows, 300), channels, dtype)
    assert max(errors[:2]) < TOLERANCES[dtype]
    assert max(errors[2:]) < TOLERANCES[torch.promote_types(dtype, torch.float32)]  # no rounding on the way


def test_programs_share_rows_and_their_sums_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = norm_errors(50, 341, torch.float64)
    monkeypatch.setattr(triton_channels, "_PROGRAMS", 3)  # for 13 blocks
    assert max(norm_errors(50, 341, torch.float64) + expected) < TOLERANCES[torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tolerances_notice_a_missing_term_of_the_norm(dtype: torch.dtype) -> None:
    for channels in (8, 341):
        (x, weight, bias), (cotangent,) = norm_cases(9, channels, dtype)
        x64, d = x.detach().double(), cotangent.detach().double() * weight.double()
        right = with_gradients(plain_norm, [x, weight, bias], [cotangent])
        centered = x64 - x64.mean(-1, keepdim=True)
        inverse = (centered.square().mean(-1, keepdim=True) + EPS).rsqrt()
        values = centered * inverse
        without_mean = inverse * (d - values * (d * values).mean(-1, keepdim=True))
        without_along = inverse * (d - d.mean(-1, keepdim=True))
        for wrong in (without_mean, without_along):
            assert error(wrong, right[1]) > 2 * TOLERANCES[dtype]
        assert error(plain_norm(x, weight, bias, 0.0), right[0]) > 2 * TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tolerances_notice_a_missing_term_of_the_gate(dtype: torch.dtype) -> None:
    for channels in (8, 341):
        inputs, (of_product, of_inverse) = gate_cases(9, channels, dtype)
        expected = with_gradients(plain_gate, inputs, [of_product, of_inverse])
        without_norm = with_gradients(plain_gate, inputs, [of_product, 0 * of_inverse])
        without_eps = with_gradients(lambda g, v: plain_gate(g, v, 0.0), inputs, [of_product, of_inverse])
        other_gelu = plain_gate(1.702 * inputs[0].double(), inputs[1])[0] / 1.702
        assert min(map(error, without_norm[2:], expected[2:])) > 2 * TOLERANCES[dtype]
        assert error(without_eps[1], expected[1]) > 2 * TOLERANCES[dtype]
        assert error(other_gelu, expected[0]) > 2 * TOLERANCES[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_rows(seed: int) -> None:
    rng = random.Random(seed)
    for dtype in DTYPES:
        inputs, cotangents = gate_cases(rng.randint(1, 60), rng.randint(1, 3000), dtype)
        actual = with_gradients(triton_gate, inputs, cotangents)
        expected = with_gradients(plain_gate, inputs, cotangents)
        assert max(map(error, actual, expected)) < TOLERANCES[dtype]
        assert max(norm_errors(rng.randint(1, 60), rng.randint(2, 3000), dtype)) < TOLERANCES[dtype]


@pytest.mark.parametrize(("function", "cases"), [(triton_gate, gate_cases), (triton_norm, norm_cases)])
def test_results_are_equal_bit_for_bit(function: Callable[..., Any], cases: Callable[..., Any]) -> None:
    case = cases(19, 129, torch.bfloat16)
    assert all(map(torch.equal, with_gradients(function, *case), with_gradients(function, *case)))


@pytest.mark.parametrize("frozen", [None, 0, 1])
@pytest.mark.parametrize(("function", "cases"), [(triton_gate, gate_cases), (triton_norm, norm_cases)])
def test_gradients_of_gradients(
    function: Callable[..., Any], cases: Callable[..., Any], frozen: int | None
) -> None:
    inputs = cases(2, 3, torch.float64)[0]
    if frozen is not None:
        inputs[frozen].requires_grad_(False)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_torch_accepts_the_operators() -> None:
    (gate, value), (of_product, of_inverse) = gate_cases(2, 3, torch.float64)
    torch.library.opcheck(triton_channels.gated_product, (gate, value, EPS, COUNT))
    tensors = [t.detach() for t in (gate, value, of_product, of_inverse)]
    torch.library.opcheck(triton_channels.gated_product_gradients, (*tensors, EPS, COUNT))
    inputs, (gradient,) = norm_cases(2, 3, torch.float64)
    torch.library.opcheck(triton_channels.layer_norm, (*inputs, EPS, torch.float64))
    tensors = [t.detach() for t in (*inputs[:2], gradient)]
    torch.library.opcheck(triton_channels.layer_norm_gradients, (*tensors, EPS))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Channels of the rows that kernels took."""
    channels: list[int] = []
    launch = triton_channels._launch

    def counted(rows: Tensor, eps: float) -> Any:
        channels.append(rows.shape[-1])
        return launch(rows, eps)

    monkeypatch.setattr(triton_channels, "_launch", counted)
    return channels


@pytest.mark.parametrize("recorded", [True, False])
def test_only_the_triton_backend_takes_what_has_run_on_no_gpu(launches: list[int], recorded: bool) -> None:
    gate, value = (
        torch.randn(2, 6, 3, 4, device=DEVICE).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    with torch.set_grad_enabled(recorded):
        expected = gated_product(gate, value, EPS)
        assert launches == []
        with use_backend("triton"):
            actual = gated_product(gate, value, EPS)
            assert launches == [6]
            gated_product(gate.contiguous(), value, EPS)  # channels-first
            gated_product(gate.to(torch.bfloat16), value, EPS)  # two dtypes
        assert launches == [6]
    for a, e in zip(actual, expected, strict=True):
        assert a.stride() == e.stride()
        assert error(a, e) < 1e-6


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
def test_norms_of_maps_take_the_kernel_likewise(launches: list[int], recorded: bool, affine: bool) -> None:
    norm = LayerNorm2d(6, affine=affine).to(DEVICE)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 6, 3, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(recorded):
        expected = timm.layers.LayerNorm2d.forward(norm, x)
        assert torch.equal(norm(x), expected)
        assert launches == []
        with use_backend("triton"):
            actual = norm(x)
            assert launches == [6] * (affine or not recorded)
            assert torch.equal(norm(x.contiguous()), timm.layers.LayerNorm2d.forward(norm, x.contiguous()))
        assert len(launches) < 2
    assert actual.stride() == expected.stride()
    assert error(actual, expected) < 1e-6


@pytest.mark.parametrize("recorded", [True, False])
def test_norms_without_bias_are_pytorchs(launches: list[int], recorded: bool) -> None:
    norm = LayerNorm2d(6, bias=False).to(DEVICE)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 6, 3, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(recorded), use_backend("triton"):
        assert torch.equal(norm(x), timm.layers.LayerNorm2d.forward(norm, x))
    assert launches == []


def test_under_autocast_norms_give_half_precision_of_sums_in_full(launches: list[int]) -> None:
    norm = LayerNorm2d(6).to(DEVICE)
    x = torch.randn(2, 6, 3, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    with use_backend("triton"), torch.autocast(DEVICE.type, torch.bfloat16):
        y = norm(x)
    assert launches == [6]
    assert y.dtype == torch.bfloat16
    assert error(y, norm(x)) < TOLERANCES[torch.bfloat16]
