from __future__ import annotations

import pytest
import torch

from atconv.ops import processor
from atconv.ops.processor import cpu_computes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_cpu_computes_in_full_precision(dtype: torch.dtype) -> None:
    assert cpu_computes(dtype)


@pytest.mark.parametrize("has", [True, False])
def test_half_precision_asks_for_its_instructions(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "cpu_has_bf16", lambda: has)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: has)
    assert cpu_computes(torch.bfloat16) is cpu_computes(torch.float16) is has
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not cpu_computes(torch.float16)
