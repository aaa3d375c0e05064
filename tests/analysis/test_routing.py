"""Collected kernels are those that the mixers use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from atconv import ATConv2d, ATConvTokens
from atconv.analysis.measures import routing_variance
from atconv.analysis.routing import before_inhibition, collect_kernels
from atconv.mixers import create_mixer
from atconv.modules import inhibition_strength


def test_kernels_are_those_the_mixers_made_in_the_order_they_ran() -> None:
    first, second = ATConv2d(4), ATConv2d(4, kernel_size=5)
    x = torch.randn(3, 4, 6, 7)
    kernels = collect_kernels(nn.Sequential(first, nn.GELU(), second), x)
    assert list(kernels) == ["0", "2"]
    torch.testing.assert_close(kernels["0"], first.kernels(x))
    torch.testing.assert_close(kernels["2"], second.kernels(nn.functional.gelu(first(x))))


def test_without_routing_there_is_one_kernel_for_all_images() -> None:
    kernels = collect_kernels(nn.Sequential(ATConv2d(4, routing=False)), torch.randn(3, 4, 6, 6))
    assert kernels["0"].shape == (1, 4, 3, 3)


def test_mixers_of_tokens_are_found_too() -> None:
    assert collect_kernels(ATConvTokens(4), torch.randn(2, 9, 4))[""].shape == (2, 4, 3, 3)


def test_the_model_stays_as_it_was_even_after_an_error() -> None:
    mixer = ATConv2d(4)
    collect_kernels(mixer, torch.randn(1, 4, 5, 5))
    with pytest.raises(ValueError, match="takes B 4 H W"):
        collect_kernels(mixer, torch.randn(1, 5, 5, 5))
    assert "kernels" not in vars(mixer)


def test_a_model_without_the_operator_is_rejected() -> None:
    with pytest.raises(ValueError, match="no ATConv mixer"):
        collect_kernels(nn.Conv2d(3, 3, 1), torch.randn(1, 3, 4, 4))


def test_static_convolutions_have_kernels_that_never_vary() -> None:
    layer = create_mixer("depthwise", 4, kernel_size=7)
    kernels = collect_kernels(nn.Sequential(layer, ATConv2d(4)), torch.randn(3, 4, 6, 6))
    assert {name: tuple(layer.shape) for name, layer in kernels.items()} == {
        "0": (1, 4, 7, 7),
        "1": (3, 4, 3, 3),
    }
    torch.testing.assert_close(kernels["0"][0], layer.weight[:, 0])
    assert routing_variance(kernels["0"], torch.tensor([0, 1, 1])).total == pytest.approx(0, abs=1e-25)
    assert routing_variance(kernels["1"], torch.tensor([0, 1, 1])).total > 0


def test_inhibition_can_be_undone() -> None:
    torch.manual_seed(0)
    mixer, x = ATConv2d(4), torch.randn(3, 4, 6, 6)
    nn.init.normal_(mixer.alpha)
    kernels = before_inhibition(mixer.kernels(x), inhibition_strength(mixer)[""])
    mixer.alpha = None
    torch.testing.assert_close(kernels, mixer.kernels(x))
    assert inhibition_strength(mixer) == {}
