from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atconv import ATConv2d, functional
from atconv.ops.dynamic_depthwise_conv import LARGE_SAMPLE
from support.helpers import WEIGHTS, assert_close, randomize

SHAPES = {
    "batch": st.integers(1, 3),
    "dim": st.integers(1, 5),
    "kernel_size": st.sampled_from([1, 3, 5, 7]),
    "height": st.integers(1, 9),
    "width": st.integers(1, 9),
    "seed": st.integers(0, 2**31),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operator_weights(dim: int, kernel_size: int, seed: int = 0) -> dict[str, Tensor]:
    bins = kernel_size**2
    shapes = {name: (dim,) if name == "alpha" or name.endswith("bias") else (dim, dim) for name in WEIGHTS}
    shapes |= {"kernel_gen.weight": (bins, bins), "kernel_gen.bias": (bins,)}
    return {name: normal(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


# The operator once more, position by position, in the paper's order: project everywhere, pool afterwards.


def loop_project(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    y = np.empty((x.shape[0], weight.shape[0], *x.shape[2:]))
    for b, i, j in np.ndindex(x.shape[0], *x.shape[2:]):
        y[b, :, i, j] = weight @ x[b, :, i, j] + bias
    return y


def loop_pool(x: np.ndarray, bins: int) -> np.ndarray:
    positions = x.shape[2] * x.shape[3]
    pooled = np.empty((*x.shape[:2], bins))
    for b, c, i in np.ndindex(pooled.shape):
        start, stop = math.floor(i * positions / bins), math.ceil((i + 1) * positions / bins)
        values = [x[b, c, p // x.shape[3], p % x.shape[3]] for p in range(start, stop)]
        pooled[b, c, i] = sum(values) / len(values)
    return pooled


def loop_route(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    size, half = kernel.shape[-1], kernel.shape[-1] // 2
    y = np.zeros_like(x)
    for b, c, i, j in np.ndindex(x.shape):
        for di, dj in np.ndindex(size, size):
            row, column = i + di - half, j + dj - half
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                y[b, c, i, j] += kernel[b, c, di, dj] * x[b, c, row, column]
    return y


def loop_gelu(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: value * 0.5 * (1 + math.erf(value / math.sqrt(2))))(x)


def loop_atconv(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    size = math.isqrt(len(w["kernel_gen.bias"]))
    context = loop_pool(loop_project(x, w["context_proj.weight"], w["context_proj.bias"]), size**2)
    kernel = np.empty((*x.shape[:2], size, size))
    for b, c in np.ndindex(x.shape[:2]):
        made = w["kernel_gen.weight"] @ loop_gelu(context[b, c]) + w["kernel_gen.bias"]
        competing = made - made.mean() / (1 + math.exp(-w["alpha"][c]))
        kernel[b, c] = competing.reshape(size, size)
    values = loop_project(x, w["value_proj.weight"], w["value_proj.bias"])
    return loop_project(loop_route(values, kernel), w["proj.weight"], w["proj.bias"])


def check_against_loops(batch: int, dim: int, kernel_size: int, height: int, width: int, seed: int) -> None:
    x, weights = normal(batch, dim, height, width, seed=seed), operator_weights(dim, kernel_size, seed)
    expected = loop_atconv(x.numpy(), {name: weight.numpy() for name, weight in weights.items()})
    assert_close(functional.atconv(x, *weights.values()), torch.from_numpy(expected), 1e-10)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 1), (5, 7), (8, 3)])
def test_operator_equals_loops(kernel_size: int, height: int, width: int) -> None:
    check_against_loops(2, 3, kernel_size, height, width, seed=0)


@settings(deadline=None, max_examples=20)
@given(**SHAPES)
def test_operator_equals_loops_at_any_shape(**shape: int) -> None:
    check_against_loops(**shape)


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 12), width=st.integers(1, 12), bins=st.integers(1, 49))
def test_pooling_averages_the_bins_of_the_formula(height: int, width: int, bins: int) -> None:
    x = normal(2, 3, height, width)
    assert_close(functional.pool_context(x, bins), torch.from_numpy(loop_pool(x.numpy(), bins)), 1e-12)


def test_pooling_runs_along_the_raster_not_over_a_grid() -> None:
    rows = torch.arange(9.0).repeat_interleave(9).reshape(1, 1, 9, 9)
    assert torch.equal(functional.pool_context(rows, 9)[0, 0], torch.arange(9.0))


def test_pooling_a_constant_map_gives_the_constant() -> None:
    context = functional.pool_context(torch.full((2, 3, 5, 7), 1.5), 25)
    torch.testing.assert_close(context, torch.full((2, 3, 25), 1.5))


@pytest.mark.parametrize("with_bias", [True, False])
def test_context_becomes_kernels_by_mixing_channels_then_bins(with_bias: bool) -> None:
    context, w = normal(2, 4, 9), operator_weights(4, 3, seed=1)
    bias, generator_bias = (w["context_proj.bias"], w["kernel_gen.bias"]) if with_bias else (None, None)
    kernel = functional.context_to_kernel(
        context, w["context_proj.weight"], bias, w["kernel_gen.weight"], generator_bias, torch.tanh
    )
    mixed = torch.einsum("dc,bcn->bdn", w["context_proj.weight"], context)
    if bias is not None:
        mixed = mixed + bias[None, :, None]
    made = torch.einsum("mn,bdn->bdm", w["kernel_gen.weight"], mixed.tanh())
    if generator_bias is not None:
        made = made + generator_bias
    assert_close(kernel, made.reshape(2, 4, 3, 3), 1e-12)


def test_kernels_are_filled_row_by_row() -> None:
    eye, context = torch.eye(9), torch.arange(9.0).reshape(1, 1, 9)
    kernel = functional.context_to_kernel(context, torch.ones(1, 1), None, eye, None, lambda x: x)
    assert torch.equal(kernel[0, 0], torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 8]]))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), kernel_size=st.sampled_from([1, 3, 5]))
def test_inhibition_scales_the_mean_and_keeps_differences(seed: int, kernel_size: int) -> None:
    kernel, alpha = normal(2, 4, kernel_size, kernel_size, seed=seed), 3 * normal(4, seed=seed + 1)
    inhibited = functional.lateral_inhibition(kernel, alpha)
    mean, left = kernel.mean((2, 3)), 1 - torch.sigmoid(alpha)
    torch.testing.assert_close(inhibited.mean((2, 3)), left * mean, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        inhibited - inhibited[..., :1, :1], kernel - kernel[..., :1, :1], rtol=0, atol=1e-13
    )


def test_full_inhibition_leaves_zero_mean_kernels_and_none_leaves_them_alone() -> None:
    kernel = normal(2, 4, 3, 3) + 1
    zero_mean = functional.lateral_inhibition(kernel, torch.full((4,), 50.0))
    assert zero_mean.mean((2, 3)).abs().max() < 1e-14
    assert torch.equal(functional.lateral_inhibition(kernel, torch.full((4,), -math.inf)), kernel)
    assert torch.equal(functional.lateral_inhibition(kernel, None), kernel)


@settings(deadline=None, max_examples=20)
@given(**SHAPES)
def test_routing_equals_loops(
    batch: int, dim: int, kernel_size: int, height: int, width: int, seed: int
) -> None:
    x, kernel = normal(batch, dim, height, width, seed=seed), normal(batch, dim, kernel_size, kernel_size)
    y = functional.dynamic_depthwise_conv(x, kernel)
    assert_close(y, torch.from_numpy(loop_route(x.numpy(), kernel.numpy())), 1e-12)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_one_kernel_for_all_samples_is_a_depthwise_convolution(batch: int) -> None:
    x, kernel = normal(batch, 4, 5, 6), normal(1, 4, 3, 3)
    y = functional.dynamic_depthwise_conv(x, kernel)
    torch.testing.assert_close(y, F.conv2d(x, kernel.transpose(0, 1), padding=1, groups=4))
    torch.testing.assert_close(y, functional.dynamic_depthwise_conv(x, kernel.repeat(batch, 1, 1, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
def test_routing_keeps_memory_format_and_dtype(batch: int, dtype: torch.dtype) -> None:
    x, kernel = normal(batch, 4, 5, 6).to(dtype), normal(batch, 4, 3, 3).float()
    y = functional.dynamic_depthwise_conv(x, kernel)
    last = functional.dynamic_depthwise_conv(x.contiguous(memory_format=torch.channels_last), kernel)
    assert y.dtype == last.dtype == dtype
    assert y.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y)


@pytest.mark.parametrize("batch", [1, 3])
def test_large_channels_last_maps_route_as_others_do(batch: int) -> None:
    """They take one convolution a sample."""
    x, kernel = normal(batch, 128, 32, 24), normal(batch, 128, 3, 3, seed=1)
    assert x[0].numel() > LARGE_SAMPLE
    ours = x.contiguous(memory_format=torch.channels_last).requires_grad_(), kernel.clone().requires_grad_()
    theirs = x.clone().requires_grad_(), kernel.clone().requires_grad_()
    results = [functional.dynamic_depthwise_conv(*inputs) for inputs in (ours, theirs)]
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    weights = normal(*x.shape, seed=2)
    for result in results:
        (result * weights).sum().backward()
    assert_close(*results, 1e-6)
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert_close(a.grad, b.grad, 1e-6)


@pytest.mark.parametrize("batch", [1, 2])
def test_pooling_does_not_depend_on_the_memory_format(batch: int) -> None:
    x = normal(batch, 5, 6, 7)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_close(functional.pool_context(last, 9), functional.pool_context(x, 9), 1e-6)


def test_projection_takes_matrices_and_1x1_kernels() -> None:
    x, weight, bias = normal(2, 3, 4, 5), normal(6, 3), normal(6)
    expected = torch.einsum("dc,bchw->bdhw", weight, x) + bias[:, None, None]
    assert_close(functional.project_channels(x, weight, bias), expected, 1e-12)
    assert_close(functional.project_channels(x, weight[:, :, None, None], bias), expected, 1e-12)


def test_operator_without_alpha_has_no_inhibition() -> None:
    x, weights = normal(2, 3, 5, 4), operator_weights(3, 3)
    without = functional.atconv(x, *{**weights, "alpha": None}.values())
    limit = functional.atconv(x, *{**weights, "alpha": torch.full((3,), -800.0)}.values())
    assert_close(without, limit, 1e-14)


@pytest.mark.parametrize("options", [{}, {"routing": False}, {"inhibition": False}, {"context_grid": True}])
def test_operator_takes_every_option_of_the_module(options: dict[str, bool]) -> None:
    module = randomize(ATConv2d(4, kernel_size=5, **options)).double()
    weights, x = module.state_dict(), normal(2, 4, 7, 6)
    y = functional.atconv(
        x,
        *(weights.get(name) for name in WEIGHTS),
        static_kernel=weights.get("static_kernel"),
        context_grid=[5, 5] if module.context_grid else None,
    )
    assert_close(y, module(x), 1e-12)


def test_operator_takes_either_routing_or_a_static_kernel() -> None:
    x, weights = normal(1, 2, 3, 3), operator_weights(2, 3)
    message = "give context_weight and generator_weight for adaptive routing, or static_kernel alone"
    with pytest.raises(ValueError, match=message):
        functional.atconv(x, *weights.values(), static_kernel=normal(2, 3, 3))
    with pytest.raises(ValueError, match=message):
        functional.atconv(x, *{**weights, "context_proj.weight": None}.values())


def test_gradients() -> None:
    x = normal(2, 2, 3, 4).requires_grad_()
    weights = [w.requires_grad_() for w in operator_weights(2, 3).values()]
    assert torch.autograd.gradcheck(functional.atconv, (x, *weights))


@settings(deadline=None, max_examples=20)
@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=6).filter(
        lambda shape: len(shape) not in (3, 4, 5)
    )
)
def test_maps_of_another_rank_are_rejected(shape: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must be B C H W.*x\[None\]") as raised:
        functional.pool_context(torch.zeros(shape), 9)
    assert str(tuple(shape)) in str(raised.value)
    with pytest.raises(ValueError, match=r"must be B C H W"):
        functional.dynamic_depthwise_conv(torch.zeros(shape), torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_maps_that_are_not_floating_point_are_rejected(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 2, 3, 3, dtype=dtype)
    with pytest.raises(TypeError, match=rf"floating point, got {dtype}.*x\.float\(\)"):
        functional.pool_context(x, 9)
    with pytest.raises(TypeError, match=rf"floating point, got {dtype}.*x\.float\(\)"):
        functional.dynamic_depthwise_conv(x, torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize("shape", [(2, 0, 3, 3), (2, 3, 0, 3), (2, 3, 3, 0)])
def test_empty_maps_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one channel and one position") as raised:
        functional.pool_context(torch.zeros(shape), 9)
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize("bins", [0, -3])
def test_no_bins_are_rejected(bins: int) -> None:
    with pytest.raises(ValueError, match=f"bins must be at least 1, got {bins}"):
        functional.pool_context(torch.zeros(1, 2, 3, 3), bins)


@pytest.mark.parametrize("bins", [2, 4, 8, 16])
def test_bins_that_fill_no_odd_kernel_are_rejected(bins: int) -> None:
    weight, generator = torch.zeros(2, 2), torch.zeros(bins, bins)
    with pytest.raises(ValueError, match=f"{bins} bins do not fill.*pool into 9, 25 or 49"):
        functional.context_to_kernel(torch.zeros(1, 2, bins), weight, None, generator, None)


@pytest.mark.parametrize(
    ("context", "weight", "generator", "message"),
    [
        ((1, 2, 3, 3), (2, 2), (9, 9), r"must be B C n, got shape \(1, 2, 3, 3\).*pool_context"),
        ((1, 2, 9), (3, 3), (9, 9), r"takes weight \(D, 2\) and generator_weight \(K², 9\), got \(3, 3\)"),
        ((1, 2, 9), (2, 2), (25, 25), r"generator_weight \(K², 9\), got \(2, 2\) and \(25, 25\)"),
    ],
)
def test_context_that_does_not_fit_is_rejected(
    context: tuple[int, ...], weight: tuple[int, int], generator: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        functional.context_to_kernel(
            torch.zeros(context), torch.zeros(weight), None, torch.zeros(generator), None
        )


@pytest.mark.parametrize(("kernel", "alpha"), [((2, 3), (3,)), ((2, 3, 3, 3), (4,)), ((2, 3, 3, 3), (3, 1))])
def test_inhibition_of_shapes_that_do_not_fit_is_rejected(
    kernel: tuple[int, ...], alpha: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"kernel must be B C K K .* and alpha C") as raised:
        functional.lateral_inhibition(torch.zeros(kernel), torch.zeros(alpha))
    assert f"{kernel} and {alpha}" in str(raised.value)


@pytest.mark.parametrize(
    "kernel", [(2, 3, 3), (2, 4, 3, 3), (2, 3, 3, 4), (2, 3, 4, 4), (2, 3, 0, 0), (9, 3)]
)
def test_kernels_of_the_wrong_shape_are_rejected(kernel: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes kernels \(B or 1, 3, K, K\) with odd K") as raised:
        functional.dynamic_depthwise_conv(torch.zeros(2, 3, 5, 5), torch.zeros(kernel))
    assert f"got {kernel}" in str(raised.value)


def test_as_many_kernels_as_samples_are_required() -> None:
    with pytest.raises(ValueError, match="4 samples take 4 kernels or 1, got 3"):
        functional.dynamic_depthwise_conv(torch.zeros(4, 2, 5, 5), torch.zeros(3, 2, 3, 3))


def test_the_kernel_size_follows_from_the_axes_of_the_map() -> None:
    for axes in (1, 2, 3):
        x = normal(2, 4, *[5] * axes)
        weights = (normal(4, 4), None, normal(3**axes, 9), None, *[None] * 5)
        sizes = (3,) * axes
        expected = functional.atconv(x, *weights, kernel_size=sizes)
        assert torch.equal(functional.atconv(x, *weights), expected)
    with pytest.raises(ValueError, match=r"7 bins do not fill a kernel of odd size .* such as \(7,\)"):
        functional.context_to_kernel(normal(2, 4, 9), normal(4, 4), None, normal(7, 9), None)
