"""The Triton kernels on a GPU, over every shape around the edges of their tiles."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator

import pytest
import torch

from atconv import functional
from atconv.ops.backend import use_backend
from support.conv_loop import TOLERANCES, convolve_by_loops, error, errors, make_inputs, with_gradients

pytest.importorskip("triton")
pytestmark = pytest.mark.cuda

SIZES = (1, 2, 3, 7, 8, 14, 15, 17, 31, 56, 57, 129)
MAPS = list(itertools.product(SIZES, SIZES))
WIDTHS = list(itertools.product((1, 3, 8, 40, 64, 129), (1, 2, 33)))  # channels, batch

Shape = tuple[int, ...]


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with use_backend("triton"):
        yield


def mismatches(
    shapes: Iterable[Shape], size: int | tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> dict[Shape, list[float]]:
    """Errors of output and gradients at shapes where one is beyond the tolerance, or a second run differs."""
    wrong = {}
    for shape in shapes:
        *inputs, cotangent = make_inputs(shape, size, dtype, torch.device("cuda"), channels_last)
        first, second = (
            with_gradients(functional.dynamic_depthwise_conv(*inputs), inputs, cotangent) for _ in range(2)
        )
        expected = with_gradients(convolve_by_loops(*inputs), inputs, cotangent)
        repeats = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        found = errors(first, expected)
        if not repeats or max(found) >= TOLERANCES[dtype]:
            wrong[shape] = found
    return wrong


@pytest.mark.parametrize("share", range(4))  # each compiles for a minute, side by side
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [3, 5, 7], ids="K{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda t: str(t)[6:])
def test_every_map_with_each_width_in_turn(
    dtype: torch.dtype, size: int, channels_last: bool, share: int
) -> None:
    widths = itertools.cycle(WIDTHS[size:] + WIDTHS[:size])
    shapes = [(batch, channels, *hw) for hw, (channels, batch) in zip(MAPS, widths, strict=False)]
    assert not mismatches(shapes[share::4], size, dtype, channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_map_with_every_width(
    dtype: torch.dtype, size: int, channels_last: bool, width: tuple[int, int]
) -> None:
    channels, batch = width
    assert not mismatches([(batch, channels, *hw) for hw in MAPS], size, dtype, channels_last)


@pytest.mark.parametrize("seed", range(8))
def test_random_shapes(seed: int) -> None:
    rng = random.Random(seed)
    size, dtype = rng.choice([1, 3, 5, 7, 9, 11]), rng.choice(list(TOLERANCES))
    shapes = [tuple(rng.randint(1, limit) for limit in (9, 200, 150, 150)) for _ in range(6)]
    assert not mismatches(shapes, size, dtype, rng.random() < 0.5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bins", [9, 25, 49])
def test_pooling_of_every_map(bins: int, dtype: torch.dtype, channels_last: bool) -> None:
    for (height, width), (channels, batch) in zip(MAPS, itertools.cycle(WIDTHS), strict=False):
        shape = (batch, channels, height, width)
        x = make_inputs(shape, 1, dtype, torch.device("cuda"), channels_last)[0]
        cotangent = torch.randn(batch, channels, bins, device="cuda").to(dtype)
        actual = with_gradients(functional.pool_context(x, bins), [x], cotangent)
        with use_backend("eager"):
            expected = with_gradients(functional.pool_context(x.double(), bins), [x], cotangent)
        assert all(error(a, e) < TOLERANCES[dtype] for a, e in zip(actual, expected, strict=True)), shape


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(1,), (3,), (7,), (31,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sequences(dtype: torch.dtype, size: tuple[int, ...], channels_last: bool) -> None:
    lengths = (*SIZES, 63, 64, 65, 255, 256, 1000)
    shapes = [(batch, channels, n) for n, (channels, batch) in zip(lengths, WIDTHS, strict=True)]
    assert not mismatches(shapes, size, dtype, channels_last)


@pytest.mark.parametrize("size", [(1, 3), (5, 1), (3, 7), (1, 13)])
def test_a_kernel_size_for_each_axis(size: tuple[int, ...]) -> None:
    shapes = [(2, 33, *hw) for hw in MAPS[::7]]
    assert not mismatches(shapes, size, torch.float32, False)
