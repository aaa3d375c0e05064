"""The replacement study: interrupted training continues exactly, and all forms train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atconv.io import read_rows
from atconv.tasks.common.sweep import Job
from studies.replace import study, training
from studies.replace.training import Data, fit, make_vit


def noise(count: int = 64) -> Data:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(count) % 10
    return Data(images, labels, (images[:20], labels[:20]), (images[20:40], labels[20:40]))


def test_an_interrupted_fit_continues_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    data, checkpoint = noise(), tmp_path / "checkpoint.pt"
    through, interrupted, continued = (make_vit(0, data.device, depth=1) for _ in range(3))
    fit(through, data, 0, 5)

    class Interrupted(Exception):
        pass

    def stop_at_the_fourth(module: torch.nn.Module, inputs: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise Interrupted

    calls: list[int] = []
    interrupted.register_forward_pre_hook(stop_at_the_fourth)
    with pytest.raises(Interrupted):
        fit(interrupted, data, 0, 5, checkpoint=checkpoint)
    fit(continued, data, 0, 5, checkpoint=checkpoint)
    assert torch.load(checkpoint, weights_only=True)["step"] == 4
    for own, other in zip(through.parameters(), continued.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("form", study.FORMS)
def test_every_form_makes_a_row(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "load_data", lambda root, device: noise())
    monkeypatch.setattr(study, "steps_in", lambda epochs: 2)
    fits: list[int] = []
    monkeypatch.setattr(study, "fit", lambda model, data, seed, steps, *rest, **options: fits.append(steps))
    monkeypatch.setattr(study, "fit_mixers", lambda model, teacher, data, seed, steps: fits.append(steps))
    row = study.make_row("root", torch.device("cpu"), Job(form, 0), tmp_path / "run")
    assert 0 <= row["val_top1"] <= 100
    assert fits
    if "distilled" not in form and form in ("attention", "attention, twice as long"):
        assert [path.suffix for path in tmp_path.glob("vit-*.safetensors")] == [".safetensors"]


def test_committed_rows_are_of_these_forms() -> None:
    rows = read_rows(study.HERE / "results.csv")
    assert {row["form"] for row in rows} == set(study.FORMS)
    kinds = {kind for form in study.FORMS.values() for kind in form.steps}
    assert kinds <= {row["what"] for row in read_rows(study.HERE / "timing.csv")}
