"""The study of routing added to a ConvNeXt: every variant starts as the trained network, and makes a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from atconv.io import read_rows
from atconv.tasks.common.sweep import Job
from studies.convnext import study
from studies.replace.training import Data, scaled
from support.helpers import assert_close


def noise(count: int = 40) -> Data:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(count) % 10
    return Data(images, labels, (images[:10], labels[:10]), (images[10:20], labels[10:20]))


@pytest.mark.parametrize("variant", study.VARIANTS)
def test_every_variant_starts_as_the_trained_network_and_makes_a_row(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[int] = []
    monkeypatch.setattr(study, "load_data", lambda root: noise())
    monkeypatch.setattr(study, "fit", lambda model, data, seed, steps, *rest, **options: fits.append(steps))
    steps = dict.fromkeys(study.TUNED, 7)
    row = study.make_row("root", steps, Job(variant, 0), tmp_path / "run")
    assert fits == [study.STEPS] + ([] if variant == study.TRAINED else [7])
    trained = study.make_row("root", steps, Job(study.TRAINED, 0), tmp_path / "other")
    assert row["top1"] == trained["top1"]
    if "routing" in variant:
        assert row["routed"] == 0
        assert row["lambda"] == ("" if variant == study.WITHOUT else 0.5)


@torch.no_grad()
def test_the_start_is_exact() -> None:
    model, images = study.make_convnext(0).eval(), scaled(noise(4).images)
    for variant in study.TUNED:
        assert_close(study.variant_of(model, variant)(images), model(images), 1e-5)


def test_images_are_read_class_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "TRAINING", 2)
    monkeypatch.setattr(study, "HELD_OUT", 1)
    for split, name, number in [
        (s, c, n) for s in ("train", "test") for c in ("cat", "dog") for n in range(4)
    ]:
        path = tmp_path / split / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(path)
    data = study.load_data(str(tmp_path))
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.val[1].tolist() == [0, 1]
    assert [round(float(image[0].float().mean()) / 60) for image in data.images] == [0, 1, 0, 1]
    assert [round(float(image[0].float().mean()) / 60) for image in data.val[0]] == [2, 2]
    with pytest.raises(FileNotFoundError, match="give the folder that holds train/CLASS"):
        study.load_data(str(tmp_path / "train"))


def test_steps_take_as_many_seconds() -> None:
    rows = [{"what": name, "milliseconds": "10"} for name in (study.PLAIN, study.WITHOUT)]
    steps = study.steps_of([*rows, {"what": study.ROUTING, "milliseconds": "25"}])
    assert steps[study.PLAIN] == steps[study.LONGER] == 100 * study.TUNING_SECONDS
    assert steps[study.ROUTING] == 40 * study.TUNING_SECONDS
    with pytest.raises(FileNotFoundError, match="run the stage `time` first"):
        study.steps_of([])


def test_committed_rows_are_of_these_variants() -> None:
    rows = read_rows(study.HERE / "results.csv")
    steps = study.steps_of(read_rows(study.HERE / "timing.csv")) | {study.TRAINED: study.STEPS}
    assert {row["variant"] for row in rows} <= set(study.VARIANTS)
    assert all(int(row["steps"]) == steps[row["variant"]] for row in rows)
