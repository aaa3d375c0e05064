"""The detection and generation studies: one small run of each adds a whole row, and committed rows agree."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from atconv.io import read_rows
from atconv.tasks.common.sweep import Job, Sweep
from studies.datasets import scenes
from studies.datasets.garments import Garments
from studies.detection import study as detection
from studies.generation import study as generation
from support.tiny import reset_accelerate, trained_run

CPU = torch.device("cpu")


def test_a_detection_run_adds_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for names in scenes.KINDS.values() for name in names]
    noise = np.random.default_rng(0).integers(30, 256, (200, 28, 28), dtype=np.uint8)
    monkeypatch.setattr(
        scenes, "load_garments", lambda root, split: Garments(noise, np.arange(200) % 10, names)
    )
    scenes.build_garment_scenes(tmp_path, tmp_path / "scenes", train=4, val=2, test=2)
    recipe = yaml.safe_load((detection.HERE / "recipe.yaml").read_text())
    short = {"epochs": 1, "batch_size": 2, "base_batch_size": 2, "min_size": [48], "max_size": 64}
    monkeypatch.setattr(detection, "HERE", tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | short))
    small = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
    monkeypatch.setitem(detection.BACKBONES, "AttNet", ("attnet_xxs", small))
    reset_accelerate()
    make_row = partial(detection.make_row, str(tmp_path / "scenes"), CPU)
    Sweep(tmp_path / "rows.csv", tmp_path / "runs", make_row, CPU, "fp32", "backbone").run([Job("AttNet", 0)])
    [row] = read_rows(tmp_path / "rows.csv")
    committed = read_rows(Path(detection.__file__).with_name("results.csv"))
    assert list(row) == [*committed[0], "device", "precision"]
    assert int(row["parameters"]) < int(committed[0]["parameters"])


def test_a_generation_run_adds_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "CLASSIFIER", trained_run())
    monkeypatch.setattr(generation, "SAMPLES", 20)
    monkeypatch.setattr(generation, "STEPS", 2)
    small = {
        "data": "digits", "test_split": None, "image_size": 8, "epochs": 1,
        "model_args": {"patch_size": 4, "depth": 2, "hidden_size": 16, "num_heads": 2},
    }  # fmt: skip
    recipe = generation.read_recipe() | small | {"device": "cpu", "warmup_epochs": 0.0}
    reset_accelerate()
    row = generation.make_row(recipe, CPU, Job("hybrid", 0), tmp_path / "run")
    committed = read_rows(generation.HERE / "results.csv")
    assert ["family", "seed", *row] == list(committed[0])
    assert row["evaluations_per_image"] == 4
    assert all(np.isfinite(value) for value in row.values())
