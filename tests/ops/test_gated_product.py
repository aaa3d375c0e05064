from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atconv.ops.gated_product import GELU, project_gated
from support.helpers import assert_close


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float16, 5e-3)])
def test_the_projection_equals_its_formula(with_bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    gate, value = torch.randn(2, 6, 3, 4, dtype=torch.float64), torch.randn(2, 6, 3, 4, dtype=torch.float64)
    weight, bias = torch.randn(5, 6, 1, 1, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    product = F.gelu(gate) * value
    normalized = product / (product.square().mean(1, keepdim=True) + 1e-6).sqrt()
    expected = F.conv2d(normalized, weight, bias if with_bias else None)
    lower = [tensor.to(dtype) for tensor in (gate, value, weight, bias)]
    y = project_gated(*lower[:2], 1e-6, lower[2], lower[3] if with_bias else None)
    assert y.dtype == dtype
    assert_close(y, expected, tolerance)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gelu_of_a_map_keeps_its_layout(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=memory_format)
    y = GELU()(x)
    torch.testing.assert_close(y, F.gelu(x))
    assert y.stride() == x.stride()
