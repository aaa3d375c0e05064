"""What happens to an image with boxes before the detector sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from atconv.tasks.detection.data import augmentation as boxes_augmentation


@settings(deadline=None, max_examples=30)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 99))
def test_boxes_and_masks_turn_with_their_image(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, top = int(rng.integers(0, width - 4)), int(rng.integers(0, height - 4))
    pixels = torch.zeros(1, height, width, dtype=torch.uint8)
    pixels[:, top : top + 4, left : left + 3] = 200
    box = torch.tensor([[left, top, left + 3, top + 4]], dtype=torch.float32)
    target: dict[str, Any] = {
        "boxes": tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor([1]),
        "masks": tv_tensors.Mask(pixels > 0),
    }
    image, changed = boxes_augmentation(1.0, 0.0)(tv_tensors.Image(pixels), target)
    torch.testing.assert_close(image, pixels.flip(2) / 255)
    x0, y0, x1, y1 = changed["boxes"][0].int().tolist()
    assert (image[:, y0:y1, x0:x1] > 0).all()
    assert (image > 0).sum() == (x1 - x0) * (y1 - y0)
    assert torch.equal(changed["masks"], image > 0)
