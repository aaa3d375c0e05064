from __future__ import annotations

import pytest
import torch

from atconv.ops.layout import channels_last, is_channels_last


@pytest.mark.parametrize(
    "size", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 3, 1, 5), (2, 3, 4, 1), (2, 1, 4, 5), (2, 3, 1, 1)]
)
def test_layouts_are_those_of_torch(size: tuple[int, ...]) -> None:
    x = torch.randn(size)
    last = x.contiguous(memory_format=torch.channels_last)
    for each in (x, last):
        both = each.is_contiguous() and each.is_contiguous(memory_format=torch.channels_last)
        torchs = each.is_contiguous(memory_format=torch.channels_last) and not both
        assert is_channels_last(each) is torchs
    assert torch.equal(channels_last(x), x)
    assert channels_last(x).stride() == last.stride()


def test_slices_of_a_batch_are_channels_last_and_slices_of_maps_are_not() -> None:
    x = torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    assert is_channels_last(x[::2])
    assert not is_channels_last(x[:, ::2])
    assert not is_channels_last(x[..., ::2])
