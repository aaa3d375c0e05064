"""Segments as they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from atconv.tasks.common.drawing import class_colors
from atconv.tasks.segmentation.plots import plot_prediction
from support.tiny import atconv
from support.tiny_dense import segmentation_run, shared_data


def test_segments_are_drawn_and_written(tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    (tmp_path / "bad.png").write_text("text")
    images = [shared_data() / "images" / "val" / "0.png", shared_data() / "images" / "train" / "0.png"]
    ended = atconv("segment", "predict", segmentation_run(), *images, tmp_path / "bad.png", f"--out={out}")
    assert ended.code == 0
    assert "bad.png: not a readable image" in ended.err
    for name in ("0.png", "0-2.png"):
        mask = Image.open(out / "masks" / name)
        assert mask.size == Image.open(images[0]).size
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == [value for color in class_colors(3) for value in color]
        assert np.asarray(mask).max() <= 2
        assert min(Image.open(out / name).size) > 300
    assert "ground" in ended.out


def test_ignored_pixels_are_drawn_gray(tmp_path: Path) -> None:
    image, mask = Image.new("RGB", (64, 48), "black"), torch.zeros(48, 64, dtype=torch.uint8)
    shares = []
    for rows in (0, 24):
        mask[:rows] = 255
        plot_prediction(image, mask, ["background", "a"], tmp_path / "drawn.png")
        drawn = np.asarray(Image.open(tmp_path / "drawn.png").convert("RGB")).astype(int)
        gray = (abs(drawn - int(0.55 * 128)) <= 1).all(2)
        right = gray[:, gray.shape[1] // 2 :]
        shares.append(right.mean())
    assert shares[0] < 0.01
    assert 0.25 < shares[1] < 0.5  # half of the image, less the margins
