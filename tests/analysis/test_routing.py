"""Kernels as they are collected and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from atconv import ATConv2d, ATConvTokens
from atconv.analysis.routing import collect_kernels, draw_kernels


def test_kernels_are_those_the_mixers_made_in_the_order_they_ran() -> None:
    first, second = ATConv2d(4), ATConv2d(4, kernel_size=5)
    x = torch.randn(3, 4, 6, 7)
    found = collect_kernels(nn.Sequential(first, nn.GELU(), second), x)
    assert list(found) == ["0", "2"]
    torch.testing.assert_close(found["0"], first.kernels(x))
    torch.testing.assert_close(found["2"], second.kernels(nn.functional.gelu(first(x))))


def test_without_routing_there_is_one_kernel_for_all_pictures() -> None:
    found = collect_kernels(nn.Sequential(ATConv2d(4, routing=False)), torch.randn(3, 4, 6, 6))
    assert found["0"].shape == (1, 4, 3, 3)


def test_token_mixers_are_found_too() -> None:
    assert collect_kernels(ATConvTokens(4), torch.randn(2, 9, 4))[""].shape == (2, 4, 3, 3)


def test_the_model_is_left_as_it_was_even_after_an_error() -> None:
    mixer = ATConv2d(4)
    collect_kernels(mixer, torch.randn(1, 4, 5, 5))
    with pytest.raises(ValueError, match="takes B 4 H W"):
        collect_kernels(mixer, torch.randn(1, 5, 5, 5))
    assert "kernels" not in vars(mixer)


def test_a_model_without_the_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="no ATConv mixer"):
        collect_kernels(nn.Conv2d(3, 3, 1), torch.randn(1, 3, 4, 4))


def test_a_picture_is_drawn_for_grey_and_colour(tmp_path: Path) -> None:
    pictures = [np.zeros((8, 8), np.uint8), np.full((8, 8, 3), 200, np.uint8)]
    draw_kernels(pictures, ["a", "b"], torch.randn(2, 3, 3, 3), "stages.0", tmp_path / "k.png")
    with Image.open(tmp_path / "k.png") as drawn:
        assert min(drawn.size) > 200
        assert len(drawn.convert("L").getcolors(1 << 24)) > 10
