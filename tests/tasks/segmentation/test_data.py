"""What happens to an image and its mask before the segmenter sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from atconv.data.masks.split import IGNORED
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.segmentation.data import _RandomShortSide, resized
from atconv.tasks.segmentation.data import augmentation as masks_augmentation


@settings(deadline=None, max_examples=30)
@given(st.integers(8, 70), st.integers(8, 70), st.integers(0, 99))
def test_a_mask_stays_on_its_image(height: int, width: int, seed: int) -> None:
    config = SegmentationConfig(
        data="data", in_chans=1, short_side=32, scales=(0.5, 1.5), crop=(32, 64), mean=(0.5,), std=(0.5,)
    )
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[: height // 2, : width // 2] = 1
    torch.manual_seed(seed)
    image, changed = masks_augmentation(config)(tv_tensors.Image(254 * mask[None]), tv_tensors.Mask(mask))
    assert image.shape == (1, 32, 64)
    assert changed.shape == (32, 64)
    shown = changed != IGNORED
    assert (image[0][~shown] == 0).all()
    # Borders are blurred in the image and not in the mask.
    assert ((image[0] > 0) == (changed == 1))[shown].float().mean() > 0.8
    assert shown.any()


@pytest.mark.parametrize("size", [(4, 400), (400, 4)])
def test_a_long_image_is_not_blown_up(size: tuple[int, int]) -> None:
    """Its longer side ends at ten times the shorter one's, in training as in evaluation."""
    assert max(resized(size, 32)) == 320
    seen: list[tuple[int, int]] = []

    class Watched(_RandomShortSide):
        def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
            output = super().transform(inpt, params)
            seen.append(tuple(output.shape[-2:]))
            return output

    image = tv_tensors.Image(torch.zeros(1, *size, dtype=torch.uint8))
    Watched(16, 48)(image, tv_tensors.Mask(torch.zeros(size, dtype=torch.uint8)))
    assert seen[0] == seen[1]
    assert 160 <= max(seen[0]) <= 480
