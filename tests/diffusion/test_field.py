"""The velocity field: guidance, what it costs, where it acts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atconv.diffusion.field import Field
from atconv.diffusion.interpolants import Linear
from support.gaussian import Gaussian, X, gaussian_field
from support.helpers import assert_close
from support.tiny_sit import tiny_sit


def velocities(t: float) -> tuple[Tensor, Tensor]:
    """Conditional and unconditional."""
    model, times = Gaussian(Linear()), torch.full((3,), t)
    return model(X, times, torch.tensor([1, 2, 3])), model(X, times)


def test_guidance_leads_away_from_the_unconditional_velocity() -> None:
    conditional, unconditional = velocities(0.4)
    for scale in (0.0, 0.5, 2.0, 7.5):
        _, field = gaussian_field(scale)
        expected = unconditional + scale * (conditional - unconditional)
        assert_close(field(torch.tensor(0.4), X), expected, 1e-5)


def test_conditional_and_unconditional_are_one_call_of_the_model() -> None:
    model, field = gaussian_field(3.0)
    field(torch.tensor(0.4), X)
    assert model.batches == [6]
    model, field = gaussian_field(1.0)
    field(torch.tensor(0.4), X)
    assert model.batches == [3], "a scale of 1 needs no unconditional half"


def test_outside_its_interval_guidance_neither_acts_nor_costs() -> None:
    model, field = gaussian_field(3.0, guidance_interval=(0.3, 0.6))
    for t in (0.1, 0.29, 0.61, 0.9):
        assert_close(field(torch.tensor(t), X), velocities(t)[0], 1e-6)
    assert model.batches == [3] * 4
    for t in (0.31, 0.59):
        conditional, unconditional = velocities(t)
        expected = unconditional + 3 * (conditional - unconditional)
        assert_close(field(torch.tensor(t), X), expected, 1e-5)
    assert model.batches[4:] == [6, 6]


def test_channels_that_are_not_guided_stay_conditional() -> None:
    _, field = gaussian_field(3.0, guidance_channels=3)
    conditional, unconditional = velocities(0.4)
    guided = unconditional + 3 * (conditional - unconditional)
    expected = torch.cat([guided[:, :3], conditional[:, 3:]], 1)
    assert_close(field(torch.tensor(0.4), X), expected, 1e-5)


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        (tiny_sit(label_dropout=0.0), torch.tensor([1])),
        (tiny_sit(num_classes=0), None),
        (tiny_sit(), None),
    ],
    ids=["no null label", "no classes", "no labels"],
)
def test_guidance_without_a_null_label_is_rejected(model: nn.Module, labels: Tensor | None) -> None:
    with pytest.raises(ValueError, match="set guidance to 1"):
        Field(model, Linear(), "velocity", labels, guidance_scale=2.0)
    Field(model, Linear(), "velocity", labels, guidance_scale=1.0)
