"""Receptive fields that are known in advance."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from atconv import ATConv2d
from atconv.analysis.receptive_field import field_radius, receptive_field
from atconv.analysis.routing import detach_kernels


def test_an_identity_network_sees_one_pixel() -> None:
    field = receptive_field(nn.Identity(), torch.randn(3, 2, 7, 9), (2, 5))
    assert field[2, 5] == pytest.approx(1)
    assert float(field.sum()) == pytest.approx(1)
    assert field_radius(field) == 0


def test_a_box_filter_sees_its_box() -> None:
    box = nn.AvgPool2d(3, stride=1, padding=1)
    field = receptive_field(box, torch.randn(2, 1, 9, 9))
    expected = torch.zeros(9, 9, dtype=torch.float64)
    expected[3:6, 3:6] = 1 / 9
    torch.testing.assert_close(field, expected)
    assert field_radius(field) == pytest.approx((4 / 3) ** 0.5)


def test_a_constant_output_has_no_field() -> None:
    field = receptive_field(lambda x: 0 * x, torch.randn(1, 1, 4, 4))
    assert float(field.sum()) == 0


def test_channels_that_cancel_count() -> None:
    # Their plain sum does not depend on the image; with random signs, channels do.
    field = receptive_field(lambda x: torch.cat([x, -x] * 20, 1), torch.randn(1, 1, 4, 4))
    assert field[2, 2] == pytest.approx(1)


def test_a_stage_of_attention_sees_everything_and_one_of_identities_little() -> None:
    images = torch.randn(2, 3, 64, 64)
    radius = {}
    for name in ("identity", "attention"):
        torch.manual_seed(0)
        model = timm.create_model("attnet_xxs", token_mixer=name, depths=(1, 1, 1, 1)).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        field = receptive_field(lambda x, m=model: m.stages[0](m.stem(x)), images)
        radius[name] = field_radius(field)
        assert (field > 0).double().mean() == pytest.approx(1.0 if name == "attention" else 0.0, abs=0.1)
    assert radius["identity"] < 6 < radius["attention"]


def test_detached_kernels_leave_the_dependence_through_values() -> None:
    mixer, images = ATConv2d(4), torch.randn(2, 4, 11, 11)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert (receptive_field(mixer, images) > 0).all()  # the kernels depend on every pixel
    with detach_kernels(mixer):
        detached = receptive_field(mixer, images)
    assert int((detached > 0).sum()) == 9
    assert (detached[4:7, 4:7] > 0).all()
    assert (receptive_field(mixer, images) > 0).all()
    assert "kernels" not in vars(mixer)


def test_outputs_that_are_no_map_and_positions_outside_it_are_rejected() -> None:
    with pytest.raises(ValueError, match="features must be a map"):
        receptive_field(lambda x: x.mean((2, 3)), torch.randn(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"position \(4, 0\) is not on a map of 4 × 4"):
        receptive_field(nn.Identity(), torch.randn(1, 1, 4, 4), (4, 0))
