"""The detection and generation studies: one small run of each adds a whole row, and committed rows agree."""

from __future__ import annotations

import shutil
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from atconv import load
from atconv.io import read_rows, write_rows
from atconv.models.sit import create_sit
from atconv.tasks.common.sweep import Job, Sweep
from atconv.tasks.generation.config import GenerationConfig
from studies.datasets import scenes
from studies.datasets.garments import Garments
from studies.depth import study as depth
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
    make_row = partial(detection.make_row, str(tmp_path / "scenes"), {"device": "cpu"})
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
    run = tmp_path / "natural" / Job("ATConv, 6 blocks", 0).folder
    row = generation.make_row(recipe, CPU, Job("hybrid", 0), run)
    committed = read_rows(generation.HERE / "results.csv")
    assert ["family", "seed", *row] == list(committed[0])
    assert not {"device", "precision"} & set(row)  # the sweep's own columns
    assert row["evaluations_per_image"] == 4
    assert all(np.isfinite(value) for value in row.values())
    options = {"runs": tmp_path, "data": "natural", "out": tmp_path}  # depth plots samples of such runs
    depth.samples(Namespace(only=None, **options))
    assert Image.open(tmp_path / "natural" / "samples.png").width > 200
    with pytest.raises(ValueError, match="no run of seed 0 has ended"):
        depth.samples(Namespace(only=["attention, 6 blocks"], **options))


def test_depths_have_equal_parameters() -> None:
    variants, _ = depth.read_variants()
    sizes = {}
    for name, options in variants.items():
        arguments = generation.read_recipe()["model_args"] | options
        with torch.device("meta"):
            model = create_sit("sit_s_2", in_channels=1, num_classes=10, learn_sigma=False, **arguments)
        sizes[name] = sum(parameter.numel() for parameter in model.parameters())
        assert len(model.blocks) == options["depth"]
    assert max(sizes.values()) < 1.14 * min(sizes.values())
    committed = {row["family"]: int(row["parameters"]) for row in read_rows(generation.HERE / "results.csv")}
    assert {family: sizes[f"{family}, 6 blocks"] for family in committed} == committed


def test_a_row_of_depth_is_one_of_the_generation_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth, "train_and_evaluate", lambda *arguments: arguments)
    on_garments, classifier, _ = depth.read_set("fashion_mnist")
    recipe, _, run, judge = depth.make_row(
        on_garments, classifier, depth.read_variants()[0], CPU, Job("ATConv, channel gate", 2), tmp_path
    )
    assert (run, judge.resolve()) == (tmp_path, generation.CLASSIFIER.resolve())
    expected = generation.read_recipe() | {"model": "sit_s_2", "seed": 2, "data_root": "data"}
    assert recipe.pop("model_args") == {
        "patch_size": 2, "depth": 6, "hidden_size": 64, "num_heads": 4, "token_mixer": "atconv",
        "channel_gate": True,
    }  # fmt: skip
    assert recipe == {name: value for name, value in expected.items() if name != "model_args"}
    GenerationConfig(**recipe)


def test_the_report_of_depth_takes_families_of_the_generation_study_that_it_has_not_run_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(out: Path) -> dict[str, list[str]]:
        depth.report(Namespace(out=out, data="fashion_mnist"))
        return {line.split(" | ")[0]: line.split(" | ") for line in capsys.readouterr().out.splitlines()}

    row = {"variant": "ATConv, 6 blocks", "seed": 0, "parameters": 1, "macs": 10**7,
           "frechet_distance": 9.0, "classifier_accuracy": 50.0, "val_loss": 0.3}  # fmt: skip
    positions = [
        row | {"variant": "ATConv, position embedding", "seed": seed, "frechet_distance": 8.0}
        for seed in range(2)
    ]
    studies = tmp_path / "studies"
    for folder in (studies / "depth", tmp_path / "own"):
        (folder / "fashion_mnist").mkdir(parents=True)
        write_rows(folder / "fashion_mnist" / "results.csv", [row, *positions])
    for name in ("depth/sets.yaml", "depth/variants.yaml", "generation/results.csv"):
        (studies / name).parent.mkdir(exist_ok=True)
        shutil.copy(depth.HERE.parent / name, studies / name)
    monkeypatch.setattr(depth, "HERE", studies / "depth")
    alone = report(tmp_path / "own")  # rows of one's own are compared among themselves
    assert "| attention, 6 blocks" not in alone
    assert alone["| ATConv, position embedding"][7:] == ["-1 (one pair)", "", "+0 (one pair)", " |"]
    lines = report(studies / "depth" / ".." / "depth")  # however the folder is named
    distances = {
        int(each["seed"]): float(each["frechet_distance"])
        for each in read_rows(generation.HERE / "results.csv")
        if each["family"] == "ATConv"
    } | {0: 9.0}
    assert lines["| ATConv, 6 blocks"][1] == lines["| attention, 6 blocks"][1] == "3"
    assert lines["| ATConv, 6 blocks"][4].startswith(f"{np.mean(list(distances.values())):.4g} ")
    difference = 8.0 - (distances[0] + distances[1]) / 2
    assert lines["| ATConv, position embedding"][7].startswith(f"{difference:+.4g} ± ")


def test_the_scale_of_depth_has_real_images_near_and_noise_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = generation.read_recipe() | {"data": "digits", "test_split": None, "image_size": 28}
    monkeypatch.setattr(depth, "read_set", lambda name: (recipe, trained_run(), None))
    monkeypatch.setattr(depth, "SAMPLES", 200)
    depth.scale(Namespace(out=tmp_path, data="digits", device=CPU))
    real, noise = read_rows(tmp_path / "digits" / "scale.csv")
    assert (real["images"], noise["images"]) == ("training images", "noise")
    assert 5 * float(real["frechet_distance"]) < float(noise["frechet_distance"])


def test_the_report_of_depth_names_all_variants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variants, seeds = depth.read_variants()
    rows = [
        {"variant": name, "seed": seed, "parameters": 1, "macs": 10**7,
         "frechet_distance": 5.0 + place + seed, "classifier_accuracy": 50.0, "val_loss": 0.3}
        for place, name in enumerate(variants) for seed in range(seeds)
    ]  # fmt: skip
    (tmp_path / "natural").mkdir()
    write_rows(tmp_path / "natural" / "results.csv", rows)
    depth.report(Namespace(out=tmp_path, data="natural"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(variants)
    place = list(variants).index("ATConv, position embedding")
    assert f"+{place - 2} ± 0" in lines[2 + place]  # its row minus the third, in every seed
    assert (tmp_path / "natural" / "results.png").stat().st_size > 10_000


def test_depth_on_natural_images_takes_color_and_a_judge_of_its_own() -> None:
    recipe, classifier, _ = depth.read_set("natural")
    assert (recipe["in_chans"], recipe["image_size"]) == (3, 32)
    GenerationConfig(**recipe)
    judge = load(classifier)
    assert judge.model.pretrained_cfg["input_size"] == (3, 32, 32)
    with pytest.raises(ValueError, match="no set animals; there are fashion_mnist, natural"):
        depth.read_set("animals")
