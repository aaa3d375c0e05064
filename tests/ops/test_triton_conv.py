"""The Triton kernels: on a GPU where there is one, else few and small cases in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from atconv import functional
from atconv.ops import backend
from atconv.ops.backend import use_backend
from atconv.ops.dynamic_depthwise_conv import triton_computes
from support.conv_loop import (
    TOLERANCES,
    Mistake,
    convolve_by_loops,
    error,
    errors,
    make_inputs,
    with_gradients,
)

pytest.importorskip("triton")

import triton
import triton.language as tl

from atconv.ops import triton_conv, triton_pool

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    (3, (2, 3, 2, 5), torch.float64, False),
    (3, (1, 33, 9, 7), torch.float32, True),
    (3, (1, 2, 11, 19), torch.float32, True),
    (3, (2, 3, 3, 17), torch.float32, False),
    (3, (1, 3, 7, 8), torch.float16, True),
    (3, (2, 2, 8, 3), torch.bfloat16, True),
    (3, (1, 3, 4, 5), torch.bfloat16, False),
    (1, (2, 3, 3, 1), torch.float32, True),
    (5, (1, 2, 3, 9), torch.float32, True),
    (7, (1, 2, 2, 4), torch.float32, False),
    (9, (1, 2, 3, 5), torch.float32, True),
    ((3, 5), (2, 3, 4, 7), torch.float32, False),
    ((1, 7), (1, 3, 3, 6), torch.float64, True),
    ((5, 1), (1, 3, 7, 2), torch.float32, False),
    ((1, 1), (1, 3, 2, 4), torch.bfloat16, False),
    ((3,), (2, 3, 9), torch.float64, False),
    ((3,), (2, 33, 70), torch.float32, True),
    ((7,), (1, 3, 261), torch.float16, False),
    ((13,), (2, 2, 5), torch.float32, True),
    ((1,), (1, 1, 1), torch.float32, False),
]


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with use_backend("triton"):
        yield


@pytest.mark.parametrize(("size", "shape", "dtype", "channels_last"), CASES)
def test_kernels_equal_loops(
    size: int | tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> None:
    *inputs, cotangent = make_inputs(shape, size, dtype, DEVICE, channels_last)
    y = functional.dynamic_depthwise_conv(*inputs)
    assert y.dtype == dtype
    assert y.stride() == inputs[0].stride()
    actual = with_gradients(y, inputs, cotangent)
    expected = with_gradients(convolve_by_loops(*inputs), inputs, cotangent)
    assert max(errors(actual, expected)) < TOLERANCES[dtype]


@triton.jit
def _ends_of_bin(out, i, N, BINS):  # type: ignore[no-untyped-def]
    start, stop = triton_pool._bin(i, N, BINS)
    tl.store(out, start)
    tl.store(out + 1, stop)


@pytest.mark.parametrize(("i", "positions", "bins"), [(32_767, 65_536, 32_768), (48, 6_620**2, 49)])
def test_bins_of_large_maps_end_where_they_should(i: int, positions: int, bins: int) -> None:
    ends = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    _ends_of_bin[(1,)](ends, i, positions, bins)
    assert ends.tolist() == [i * positions // bins, positions]


@pytest.mark.parametrize("mistake", ["tap", "border", "edge"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("shape", [(1, 3, 7, 8), (2, 8, 57, 56), (1, 2, 129, 129)])
def test_the_tolerances_notice_mistakes(
    mistake: Mistake, dtype: torch.dtype, size: int, shape: tuple[int, ...]
) -> None:
    *inputs, cotangent = make_inputs(shape, size, dtype, DEVICE, False)
    wrong, right = (
        with_gradients(convolve_by_loops(*inputs, mistake=m), inputs, cotangent) for m in (mistake, "none")
    )
    assert min(errors(wrong, right)[:3]) > 2 * TOLERANCES[dtype]  # of output, map and kernels


def slices(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 3)[:, :, 1:, ::2]


def tokens_behind_a_prefix(x: Tensor) -> Tensor:
    tokens = torch.cat([x[:, :, 0, :1], x.flatten(2)], 2).transpose(1, 2).contiguous()
    return tokens[:, 1:].transpose(1, 2).unflatten(2, x.shape[2:])


def expanded(x: Tensor) -> Tensor:
    return x[:1].expand(2, -1, -1, -1)


@pytest.mark.parametrize("view", [slices, tokens_behind_a_prefix, expanded])
def test_views_are_read_as_they_lie(view: Callable[[Tensor], Tensor]) -> None:
    x, kernel, alpha, _ = make_inputs((2, 3, 4, 5), 3, torch.float32, DEVICE, False)
    mapped = view(x)
    inputs = (x, kernel, alpha)
    y = functional.dynamic_depthwise_conv(mapped, kernel, alpha)
    cotangent = torch.randn_like(y)
    expected = with_gradients(convolve_by_loops(mapped, kernel, alpha), inputs, cotangent)
    assert max(errors(with_gradients(y, inputs, cotangent), expected)) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("groups", [1, 2])
def test_groups_of_channels_share_kernels(groups: int) -> None:
    x, kernel, alpha, cotangent = make_inputs((2, 4, 3, 5), 3, torch.float64, DEVICE, False)
    inputs = (x, kernel, alpha)
    shared = kernel[:, :groups], alpha[:groups]
    actual = with_gradients(functional.dynamic_depthwise_conv(x, *shared), inputs, cotangent)
    expanded = (t.repeat_interleave(4 // groups, t.ndim // 4) for t in shared)
    expected = with_gradients(convolve_by_loops(x, *expanded), inputs, cotangent)
    assert max(errors(actual, expected)) < TOLERANCES[torch.float64]


def test_one_kernel_for_all_samples_gets_the_sum_of_gradients() -> None:
    x, kernel, alpha, cotangent = make_inputs((2, 3, 4, 5), 3, torch.float32, DEVICE, True)
    inputs = (x, kernel, alpha)
    actual = with_gradients(functional.dynamic_depthwise_conv(x, kernel[:1], alpha), inputs, cotangent)
    expected = with_gradients(convolve_by_loops(x, kernel[:1], alpha), inputs, cotangent)
    assert max(errors(actual, expected)) < TOLERANCES[torch.float32]


def test_half_precision_maps_take_kernels_in_full_precision() -> None:
    x, kernel, _, cotangent = make_inputs((1, 3, 4, 5), 3, torch.bfloat16, DEVICE, True)
    kernel = torch.randn_like(kernel, dtype=torch.float32, requires_grad=True)
    y = functional.dynamic_depthwise_conv(x, kernel)
    expected = with_gradients(convolve_by_loops(x, kernel), (x, kernel), cotangent)
    actual = with_gradients(y, (x, kernel), cotangent)
    assert [a.dtype for a in actual] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert error(actual[2], expected[2]) < TOLERANCES[torch.float32]  # no rounding on the way


def test_results_are_equal_bit_for_bit() -> None:
    *inputs, cotangent = make_inputs((1, 3, 9, 19), 3, torch.float32, DEVICE, True)
    first, second = (
        with_gradients(functional.dynamic_depthwise_conv(*inputs), inputs, cotangent) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_of_gradients() -> None:
    *inputs, _ = make_inputs((1, 2, 2, 3), 3, torch.float64, DEVICE, False)
    cotangents = [torch.randn_like(t) for t in inputs]
    results = []
    for convolve in (functional.dynamic_depthwise_conv, convolve_by_loops):
        y = convolve(*inputs)
        first = torch.autograd.grad(y, inputs, y.detach().cos(), create_graph=True)
        moved = sum((a * b).sum() for a, b in zip(first, cotangents, strict=True))
        results.append(torch.autograd.grad(moved, inputs))
    assert all(error(a, e) < 1e-12 for a, e in zip(*results, strict=True))


POOLED = [
    ((2, 3, 5, 7), False, 9, torch.float32),
    ((2, 3, 5, 7), True, 9, torch.bfloat16),
    ((1, 33, 4, 5), True, 25, torch.float32),  # fewer positions than bins
    ((2, 2, 1, 2), False, 9, torch.float64),
    ((1, 1, 1, 1), True, 1, torch.float16),
    ((2, 3, 23), False, 7, torch.float32),
    ((1, 33, 5), True, 9, torch.float64),
]


@pytest.mark.parametrize(("shape", "channels_last", "bins", "dtype"), POOLED)
def test_pooling_equals_pytorchs(
    shape: tuple[int, ...], channels_last: bool, bins: int, dtype: torch.dtype
) -> None:
    x = make_inputs(shape, 1, dtype, DEVICE, channels_last)[0]
    cotangent = torch.randn(*shape[:2], bins, device=DEVICE)
    actual = with_gradients(functional.pool_context(x, bins), [x], cotangent)
    with use_backend("eager"):
        expected = with_gradients(functional.pool_context(x.double(), bins), [x], cotangent.to(dtype))
    assert actual[1].stride() == x.stride()
    assert all(error(a, e) < TOLERANCES[dtype] for a, e in zip(actual, expected, strict=True))


def test_large_bins_are_split_and_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_pool, "_VALUES", 256)  # 8 positions a tile
    x = torch.randn(1, 2, 9, 21, device=DEVICE).contiguous(memory_format=torch.channels_last)
    actual = functional.pool_context(x, 4)
    monkeypatch.setattr(triton_pool, "_PROGRAMS", 1)
    assert not torch.equal(actual, functional.pool_context(x, 4))  # summed in another order
    with use_backend("eager"):
        assert error(actual, functional.pool_context(x.double(), 4)) < 1e-6


def test_torch_accepts_the_operators() -> None:
    x, kernel, alpha, _ = make_inputs((1, 2, 2, 3), 3, torch.float64, DEVICE, True)
    flat = torch.randn(1, 2, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    for operator, arguments in (
        (triton_conv.convolve, (x, kernel, alpha, alpha, False)),
        (triton_conv.convolve, (x, kernel, None, None, True)),
        (triton_conv.correlate, (x, x.detach().clone().requires_grad_(), 1, 3)),
        (triton_pool.pool, (x, 4)),
        (triton_pool.spread, (flat, 2, 3, True)),
    ):
        torch.library.opcheck(operator, arguments)


@torch.no_grad()
def test_views_that_torch_negates_when_they_are_read_are_read_so() -> None:
    x, kernel = (torch.randn(2, 3, 4, size, dtype=torch.complex64).conj().imag for size in (5, 9))
    kernel = kernel[:, :, 0].unflatten(2, (3, 3))
    assert x.is_neg()
    assert kernel.is_neg()
    expected = convolve_by_loops(x, kernel)
    assert error(functional.dynamic_depthwise_conv(x, kernel), expected) < 1e-5
    assert error(functional.dynamic_depthwise_conv(x.clone(), kernel), expected) < 1e-5
    pooled = functional.pool_context(x, 9)
    with use_backend("eager"):
        assert error(pooled, functional.pool_context(x, 9)) < 1e-5


def test_gradients_whose_strides_are_too_large_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens N B C hand back a gradient that lies as they do, whatever the map's own strides."""
    *inputs, cotangent = make_inputs((8, 2, 7), 3, torch.float32, DEVICE, False)
    launched = []
    launch = triton_conv._launch

    def seen(x: Tensor, *args: Any) -> Any:
        launched.append(x)
        return launch(x, *args)

    monkeypatch.setattr(triton_conv, "_launch", seen)
    monkeypatch.setattr(backend, "_MAX_OFFSET", 60)  # within a sample lie 14, of the gradient 98
    y = functional.dynamic_depthwise_conv(*inputs)
    tokens = y.permute(2, 0, 1).contiguous()
    actual = [y, *torch.autograd.grad(tokens, inputs, cotangent.permute(2, 0, 1).contiguous())]
    assert len(launched) == 3
    assert all(map(backend._fits, launched))
    expected = with_gradients(convolve_by_loops(*inputs), inputs, cotangent)
    assert max(errors(actual, expected)) < TOLERANCES[torch.float32]
    # What derivatives of higher order hand back, too.
    far = cotangent.permute(2, 0, 1).contiguous().permute(1, 2, 0).unsqueeze(2)
    x = inputs[0].detach().unsqueeze(2)
    triton_conv.correlate(x.requires_grad_(), far.requires_grad_(), 1, 3).sum().backward()
    assert len(launched) == 6
    assert all(map(backend._fits, launched[4:]))
    pooled, launch_pool = [], triton_pool.pool
    monkeypatch.setattr(triton_pool, "pool", lambda x, bins: pooled.append(x) or launch_pool(x, bins))
    triton_pool._spread_gradient(mock.Mock(bins=3), far.detach())
    assert backend._fits(pooled[0])


def test_kernels_on_another_device_are_left_to_pytorchs_operators() -> None:
    x = torch.randn(1, 2, 3, 3, device=DEVICE)
    same = [1, 1], [1, 1], [1, 1]
    assert triton_computes(x, torch.randn(1, 2, 3, 3, device=DEVICE), *same)
    assert not triton_computes(x, torch.empty(1, 2, 3, 3, device="meta"), *same)
