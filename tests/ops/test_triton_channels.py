"""The Triton kernels over channels: on a GPU where there is one, else few rows in Triton's interpreter."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atconv.ops.backend import use_backend
from atconv.ops.gated_product import gated_product
from support.conv_loop import TOLERANCES, error

pytest.importorskip("triton")

from atconv.ops import triton_channels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHANNELS = (1, 3, 8, 40, 64, 129, 341)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EPS = 0.1  # so large that one that is left out is noticed


def plain_gate(gate: Tensor, value: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """In float64."""
    product = F.gelu(gate.double()) * value.double()
    return product, (product.square().mean(-1, keepdim=True) + eps).rsqrt()


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
    return inputs, [make_rows(rows, channels, dtype), make_rows(rows, 1, dtype) * channels**0.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_gated_products_equal_their_formula(channels: int, dtype: torch.dtype) -> None:
    rows = random.Random(channels).randint(1, 2 * 2048 // channels + 2)
    inputs, cotangents = gate_cases(min(rows, 300), channels, dtype)
    actual = with_gradients(lambda g, v: triton_channels.gated_product(g, v, EPS), inputs, cotangents)
    expected = with_gradients(plain_gate, inputs, cotangents)
    assert [a.dtype for a in actual] == [dtype] * 4
    assert max(map(error, actual, expected)) < TOLERANCES[dtype]


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
        actual = with_gradients(lambda g, v: triton_channels.gated_product(g, v, EPS), inputs, cotangents)
        expected = with_gradients(plain_gate, inputs, cotangents)
        assert max(map(error, actual, expected)) < TOLERANCES[dtype]


def test_results_are_equal_bit_for_bit() -> None:
    inputs, cotangents = gate_cases(19, 129, torch.bfloat16)
    first, second = (
        with_gradients(lambda g, v: triton_channels.gated_product(g, v, EPS), inputs, cotangents)
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("wanted", [(True, True), (True, False)])
def test_gradients_of_gradients(wanted: tuple[bool, bool]) -> None:
    rows = [make_rows(2, 3, torch.float64).requires_grad_(w) for w in wanted]
    function = lambda *rows: triton_channels.gated_product(*rows, EPS)  # noqa: E731
    assert torch.autograd.gradcheck(function, rows)
    assert torch.autograd.gradgradcheck(function, rows)


def test_torch_accepts_the_operators() -> None:
    (gate, value), (of_product, of_inverse) = gate_cases(2, 3, torch.float64)
    torch.library.opcheck(triton_channels.gated_product, (gate, value, EPS))
    tensors = [t.detach() for t in (gate, value, of_product, of_inverse)]
    torch.library.opcheck(triton_channels.gated_product_gradients, (*tensors, EPS))


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
