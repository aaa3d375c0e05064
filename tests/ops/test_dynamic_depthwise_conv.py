"""Every form of the dynamic depthwise convolution is the same function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from atconv.ops import dynamic_depthwise_conv as forms
from atconv.ops.layout import is_channels_last
from support.helpers import assert_close

# Sizes of 1, smaller than the kernel, even and odd.
SIZES = [(1, 1, 1, 1), (1, 3, 2, 5), (2, 4, 7, 1), (3, 5, 8, 6)]


def same(kernel_size: int) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding and dilation that keep the size of a map."""
    return [1, 1], [kernel_size // 2] * 2, [1, 1]


@pytest.mark.parametrize("form", [forms.by_sample, forms.channels_first, forms.shifted])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("strided", [False, True])
def test_forms_agree_with_their_gradients(
    form: Callable[..., Tensor],
    size: tuple[int, int, int, int],
    kernel_size: int,
    memory_format: torch.memory_format,
    strided: bool,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, dtype=torch.float64, generator=generator).contiguous(memory_format=memory_format)
    if strided:
        x = x.repeat_interleave(2, 3)[..., ::2]
    kernel = torch.randn(*size[:2], kernel_size, kernel_size, dtype=torch.float64, generator=generator)
    cotangent = torch.randn(size, dtype=torch.float64, generator=generator)
    results = []
    for function in (forms.grouped, form):
        inputs = x.detach().requires_grad_(), kernel.clone().requires_grad_()
        y = function(*inputs, *same(kernel_size))
        results.append([y, *torch.autograd.grad(y, inputs, cotangent)])
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_shared_kernel_is_the_same_kernel_for_each_sample(batch: int) -> None:
    x, kernel = torch.randn(batch, 4, 5, 6, dtype=torch.float64), torch.randn(1, 4, 3, 3, dtype=torch.float64)
    expected = forms.grouped(x, kernel.expand(batch, -1, -1, -1), *same(3))
    assert_close(forms.shared(x, kernel, *same(3)), expected, 1e-12)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("native", [True, False])
def test_where_products_are_emulated_no_convolution_is_channels_last(
    batch: int, dtype: torch.dtype, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts, conv2d = [], forms.F.conv2d

    def watched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layouts.append(is_channels_last(x))
        return conv2d(x, *args, **kwargs)

    monkeypatch.setattr(forms.F, "conv2d", watched)
    monkeypatch.setattr(forms, "cpu_computes", lambda dtype: native)
    x = torch.randn(batch, 256, 16, 16).contiguous(memory_format=torch.channels_last).to(dtype)
    assert x[0].numel() >= forms.LARGE_SAMPLE
    kernel = torch.randn(batch, 256, 3, 3).to(dtype)
    y = forms.dynamic_depthwise_conv(x, kernel, *same(3))
    assert layouts == ([True] * batch if native else [False])
    assert is_channels_last(y)
    assert_close(y, forms.shifted(x.double(), kernel.double(), *same(3)), 1e-2)


def test_results_are_deterministic() -> None:
    x, kernel = torch.randn(2, 8, 9, 7), torch.randn(2, 8, 3, 3)
    for form in (forms.grouped, forms.by_sample, forms.shifted):
        assert torch.equal(form(x, kernel, *same(3)), form(x, kernel, *same(3)))
