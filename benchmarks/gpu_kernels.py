"""The operator's convolution and pooling alone, and norms and gates around it: our kernels, other forms of
the functions, and attention."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atconv.ops import context_pooling
from atconv.ops import dynamic_depthwise_conv as forms
from atconv.ops.backend import Backend, use_backend
from atconv.ops.gated_product import gated_product
from atconv.ops.layer_norm import normalize_channels
from gpu_timing import Row, Setup

__all__ = ["kernels", "tiles"]

Case = tuple[str, Callable[[], Row]]

# Batch, channels, height and width: AttNet-T2's stages, SiT-XL/2's grids of tokens, larger maps.
SHAPES = (
    (128, 64, 56, 56),
    (128, 288, 14, 14),
    (32, 1152, 32, 32),
    (128, 128, 28, 28),
    (128, 512, 7, 7),
    (64, 1152, 16, 16),
    (8, 1152, 64, 64),
    (32, 64, 112, 112),
    (8, 64, 256, 256),
)
COMPILED = SHAPES[:2]  # it takes seconds each
# Of AttNet-T2's gated units, with whole rows and without, and of its norms.
GATES = ((128, 344, 56, 56), (128, 341, 56, 56), (128, 688, 28, 28), (128, 768, 14, 14), (128, 1368, 7, 7))
NORMS = ((128, 64, 56, 56), (128, 128, 28, 28), (128, 288, 14, 14), (128, 512, 7, 7))
HEAD = 64  # channels of a head of attention
MAX_TOKENS = 64**2  # that attention is measured on


def kernels(setup: Setup) -> Iterator[Case]:
    """Microseconds and GB/s by shape; K = 3 in bfloat16 channels-last first, then other forms of data."""
    yield "copy", lambda: {"GB/s": setup.copy_bandwidth()}
    shapes = ((2, 3, 4, 5),) if setup.trial else SHAPES
    for shape in shapes:
        name = "×".join(map(str, shape))
        yield f"{name} bfloat16 last K=3", partial(_compare, setup, shape, torch.bfloat16, True, 3)
    for kind, measure, of_kind in (("gate", _gate, GATES), ("norm", _norm, NORMS)):
        for shape in shapes if setup.trial else of_kind:
            yield f"{kind} {'×'.join(map(str, shape))}", partial(measure, setup, shape)
    for shape in shapes:
        name = "×".join(map(str, shape))
        yield f"{name} attention", partial(_attention, setup, shape)
    for size, dtype, last in itertools.product((3, 5, 7), (torch.float32, torch.bfloat16), (True, False)):
        if (size, dtype, last) != (3, torch.bfloat16, True):
            name = f"{'×'.join(map(str, shapes[0]))} {str(dtype)[6:]} {'last' if last else 'first'} K={size}"
            yield name, partial(_compare, setup, shapes[0], dtype, last, size)


def _map(setup: Setup, shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.randn(shape, device=setup.device, dtype=dtype).contiguous(memory_format=layout)


def _kernels(setup: Setup, shape: tuple[int, ...], dtype: torch.dtype, size: int) -> Tensor:
    """B C K K, as the operator makes them: the channels lie together."""
    taps = torch.randn(shape[0], size**2, shape[1], device=setup.device, dtype=dtype)
    return taps.transpose(1, 2).unflatten(2, (size, size))


def _compare(setup: Setup, shape: tuple[int, ...], dtype: torch.dtype, last: bool, size: int) -> Row:
    """Microseconds of each form, and GB/s of our kernels for the bytes that must be moved."""
    from atconv.ops import triton_conv, triton_pool

    x, g = (_map(setup, shape, dtype, last) for _ in range(2))
    k = _kernels(setup, shape, dtype, size)
    strength = torch.rand(shape[1], device=setup.device)
    ours = {
        "forward": lambda: triton_conv.convolve(x, k, strength, None, False),
        "map gradient": lambda: triton_conv.convolve(g, k, strength, None, True),
        "kernel gradient": lambda: triton_conv.correlate(x, g, size, size),
        "pooling": lambda: triton_pool.pool(x, size**2),
    }
    moved = x.numel() * x.element_size()  # bytes of one map
    copy = setup.seconds(partial(torch.empty_like(x).copy_, x), cold=True)
    row: Row = {"MB": 2 * moved / 1e6, "copy of as much µs": 1e6 * copy}
    for name, call in ours.items():
        seconds, maps = setup.seconds(call, cold=True), 1 if name == "pooling" else 2
        row |= {f"{name} µs": 1e6 * seconds, f"{name} GB/s": maps * moved / seconds / 1e9}
    same = [1, 1], [size // 2] * 2, [1, 1]  # stride, padding, dilation
    others: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ours": lambda x, k: triton_conv.convolve(x, k, None, None, False),
        "grouped": lambda x, k: forms.grouped(x, k, *same),
        "static depthwise": lambda x, k: forms.shared(x, k[:1], *same),
    }
    if shape in COMPILED and size == 3 and dtype == torch.bfloat16:
        others["shifted, compiled"] = torch.compile(
            lambda x, k: forms.shifted(x, k, *same), backend=setup.compiler
        )
    with torch.no_grad():
        row |= {
            f"{n} forward µs": 1e6 * setup.seconds(partial(f, x, k), cold=True) for n, f in others.items()
        }
        row["adaptive pooling µs"] = 1e6 * setup.seconds(
            partial(context_pooling.adaptive, x, size**2, None), cold=True
        )
    inputs = x.requires_grad_(), k.requires_grad_()
    for name, function in others.items():
        both = partial(_both, function, inputs, g)
        row[f"{name} both µs"] = 1e6 * setup.seconds(both, cold=True)
        row[f"{name} both, with its launches, µs"] = 1e6 * setup.seconds(both)
    return row


def _gate(setup: Setup, shape: tuple[int, ...]) -> Row:
    """The gated product, which reads two maps and writes one; its gradient reads three and writes two."""
    gate, value, g = (_map(setup, shape, torch.bfloat16, True) for _ in range(3))
    gradients = g, g[:, :1].contiguous()
    return _by_backend(setup, lambda *maps: gated_product(*maps, 1e-6), (gate, value), gradients, 3, 5)


def _norm(setup: Setup, shape: tuple[int, ...]) -> Row:
    """The norm over channels, which reads a map and writes one; its gradient reads two and writes one."""
    x, g = (_map(setup, shape, torch.bfloat16, True) for _ in range(2))
    affine = (torch.rand(shape[1], device=setup.device) for _ in range(2))

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return normalize_channels(x, [shape[1]], weight.to(x), bias.to(x), 1e-6, False)

    return _by_backend(setup, function, (x, *affine), g, 2, 3)


def _by_backend(
    setup: Setup,
    function: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    gradients: Any,
    moved: int,
    moved_back: int,
) -> Row:
    """Microseconds of PyTorch's operators and of our kernels, and GB/s of these for the maps they move."""
    row: Row = {}
    size = inputs[0].numel() * inputs[0].element_size() / 1e9  # GB of a map
    inputs = tuple(t.requires_grad_() for t in inputs)
    backends: tuple[Backend, ...] = ("eager", "triton")
    for backend in backends:
        with use_backend(backend):
            with torch.no_grad():
                forward = setup.seconds(partial(function, *inputs), cold=True)
            both = setup.seconds(partial(_both, function, inputs, gradients), cold=True)
        row |= {f"{backend} forward µs": 1e6 * forward, f"{backend} both µs": 1e6 * both}
    return row | {"forward GB/s": moved * size / forward, "both GB/s": (moved + moved_back) * size / both}


def _both(function: Callable[..., Any], inputs: tuple[Tensor, ...], gradient: Any) -> None:
    torch.autograd.grad(function(*inputs), inputs, gradient)


def _attention(setup: Setup, shape: tuple[int, ...]) -> Row:
    """Flash attention among the positions of a map, with as many channels, without its projections."""
    batch, channels, tokens = shape[0], max(shape[1], HEAD) // HEAD * HEAD, shape[2] * shape[3]
    if tokens > MAX_TOKENS:
        return {"tokens": tokens, "skipped": "too many for attention"}
    size = batch, channels // HEAD, tokens, HEAD
    q, k, v, g = (torch.randn(size, device=setup.device, dtype=torch.bfloat16) for _ in range(4))
    with torch.no_grad():
        forward = setup.seconds(lambda: F.scaled_dot_product_attention(q, k, v), cold=True)
    inputs = tuple(t.requires_grad_() for t in (q, k, v))
    both = setup.seconds(lambda: _both(F.scaled_dot_product_attention, inputs, g), cold=True)
    return {"tokens": tokens, "forward µs": 1e6 * forward, "both µs": 1e6 * both}


def tiles(setup: Setup) -> Iterator[Case]:
    """Microseconds by division of a map, to choose `triton_rows.STRIPS` and `triton_conv.TUNING` from."""
    shapes = ((1, 3, 4, 5),) if setup.trial else COMPILED
    for shape, columns, channels in itertools.product(shapes, (4, 8), (64, 128)):
        name = f"{'×'.join(map(str, shape))}, {columns} columns, {channels} channels"
        for stages in (2, 3, 4):
            division = (columns, channels, columns * channels // 128, 1024, stages)
            yield f"convolve {name}, {stages} stages", partial(_strip, setup, "convolve", shape, division)
        for warps in (1, 2, 4):
            division = (columns, channels, warps, 1024)
            yield f"correlate {name}, {warps} warps", partial(_strip, setup, "correlate", shape, division)
    values = (1024, 2048) if setup.trial else (2048, 4096, 8192)
    for program, shape in itertools.product(("convolve", "correlate"), shapes):
        for count, warps in itertools.product(values, (4, 8)):
            name = f"{program} {'×'.join(map(str, shape))} channels first, {count} values, {warps} warps"
            yield name, partial(_tile, setup, program, shape, count, warps)


def _strip(setup: Setup, program: str, shape: tuple[int, ...], division: tuple[int, ...]) -> Row:
    from atconv.ops import triton_rows

    before = triton_rows.STRIPS[program]
    triton_rows.STRIPS[program] = triton_rows.Strips(*division)
    triton_rows._launch.cache_clear()
    try:
        return _program(setup, program, _map(setup, shape, torch.bfloat16, True))
    finally:
        triton_rows.STRIPS[program] = before
        triton_rows._launch.cache_clear()


def _tile(setup: Setup, program: str, shape: tuple[int, ...], values: int, warps: int) -> Row:
    from atconv.ops import triton_conv

    before = triton_conv.TUNING[program]
    triton_conv.TUNING[program] = triton_conv.Tuning(values, warps)
    try:
        return _program(setup, program, _map(setup, shape, torch.bfloat16, False))
    finally:
        triton_conv.TUNING[program] = before


def _program(setup: Setup, program: str, x: Tensor) -> Row:
    from atconv.ops import triton_conv

    k = _kernels(setup, tuple(x.shape), x.dtype, 3)
    calls = {
        "convolve": lambda: triton_conv.convolve(x, k, None, None, False),
        "correlate": lambda: triton_conv.correlate(x, x, 3, 3),
    }
    return {"µs": 1e6 * setup.seconds(calls[program], cold=True)}
