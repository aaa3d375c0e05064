"""Evaluation on images that a run was trained on: it happens when asked for, or is reported."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import atconv
from atconv.tasks import train
from support.tiny import atconv as command
from support.tiny import image_folder, tiny_config
from support.tiny_dense import annotated_folder, detect, segment


def flat_folder(root: Path) -> Path:
    """Annotated images without splits."""
    annotated_folder(root, train=16, val=1)
    for name in ("images", "masks"):
        shutil.rmtree(root / name / "val")
        for path in sorted((root / name / "train").iterdir()):
            path.rename(root / name / path.name)
        (root / name / "train").rmdir()
    (root / "val.json").unlink()
    (root / "train.json").rename(root / "annotations.json")
    return root


def classify(run: Path, data: Path) -> Path:
    options = {"in_chans": 3, "test_fraction": 0.3, "batch_size": 8, "base_batch_size": 8}
    return train(tiny_config(data=str(data), **options), run)


Runs = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run of each task and its DATA, which has no splits."""
    root = tmp_path_factory.mktemp("runs")
    folders = image_folder(root / "folders", {"ant": 20, "bee": 20})
    (folders / "bee" / "bad.png").write_text("text")
    shutil.copy(folders / "bee" / "1.png", folders / "bee" / "copy of 1.png")
    dense = flat_folder(root / "dense")
    return {
        "classification": (classify(root / "classification", folders), folders),
        "detection": (detect(root / "detection", dense, epochs=1, val_fraction=0.25), dense),
        "segmentation": (segment(root / "segmentation", dense, epochs=1, val_fraction=0.25), dense),
    }


TASKS = ("classification", "detection", "segmentation")


def saved(run: Path) -> dict[str, list[str]]:
    content = json.loads((run / "split.json").read_text())
    return {name: content[name] for name in ("train", "val", "test") if name in content}


def metrics_of(metrics: Any) -> dict[str, Any]:
    values = json.loads(json.dumps(metrics.to_dict()))
    del values["images_per_second"]
    return values


def remove(data: Path, names: set[str]) -> None:
    """Take images out of a copy of DATA."""
    for name in names:
        (next(f for f in (data / name, data / "images" / name) if f.is_file())).unlink()
        (data / "masks" / name).unlink(missing_ok=True)
    if (data / "annotations.json").is_file():
        content = json.loads((data / "annotations.json").read_text())
        content["images"] = [entry for entry in content["images"] if entry["file_name"] not in names]
        ids = {entry["id"] for entry in content["images"]}
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in ids]
        (data / "annotations.json").write_text(json.dumps(content))


@pytest.mark.parametrize("task", TASKS)
def test_a_copy_of_the_data_is_evaluated_on_the_split_held_out(
    task: str, runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, data = runs[task]
    copy = shutil.copytree(data, tmp_path / "elsewhere")
    predictor = atconv.load(run)
    own, copied = predictor.evaluate(), predictor.evaluate(str(copy))
    assert own.split == ("test" if task == "classification" else "val")
    assert own.trained_on == 0
    assert metrics_of(copied) == metrics_of(own)
    assert "trained on" not in caplog.text


@pytest.mark.parametrize("task", TASKS)
def test_a_part_of_the_data_is_evaluated_on_what_it_has_of_the_split_held_out(
    task: str, runs: Runs, tmp_path: Path
) -> None:
    run, data = runs[task]
    splits, part = saved(run), shutil.copytree(data, tmp_path / "part")
    held_out = list(splits)[-1]
    remove(part, {splits[held_out][0], splits["train"][0]})
    metrics = atconv.load(run).evaluate(str(part))
    assert (metrics.split, metrics.images) == (held_out, len(splits[held_out]) - 1)
    assert metrics.trained_on == 0


def add_image(data: Path) -> None:
    """Another image, which no run knows, under a name like that of others."""
    if (data / "ant").is_dir():
        pixels = np.random.default_rng(9).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / "ant" / "new.png")
        return
    other = annotated_folder(data.parent / "other", train=1, val=1, seed=9)
    for kind in ("images", "masks"):
        shutil.copy(other / kind / "train" / "0.png", data / kind / "new.png")
    content, new = (json.loads(p.read_text()) for p in (data / "annotations.json", other / "train.json"))
    content["images"].append({**new["images"][0], "id": 999, "file_name": "new.png"})
    content["annotations"] += [
        {**a, "id": 900 + i, "image_id": 999} for i, a in enumerate(new["annotations"])
    ]
    (data / "annotations.json").write_text(json.dumps(content))


@pytest.mark.parametrize("task", TASKS)
def test_other_data_with_training_images_in_it_is_labeled(
    task: str, runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, data = runs[task]
    mixed = shutil.copytree(data, tmp_path / "mixed")
    add_image(mixed)
    with caplog.at_level(logging.WARNING, "atconv"):
        metrics = atconv.load(run).evaluate(str(mixed))
    assert (metrics.split, metrics.trained_on) == ("all", len(saved(run)["train"]))
    assert f"{metrics.trained_on} of " in caplog.text
    assert metrics.to_dict()["trained_on"] == metrics.trained_on


@pytest.mark.parametrize("split", ["train", "all"])
@pytest.mark.parametrize("task", TASKS)
def test_training_images_are_evaluated_when_asked_for(
    task: str, split: str, runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, data = runs[task]
    splits = saved(run)
    expected = len(splits["train"]) if split == "train" else sum(map(len, splits.values()))
    for where in (None, str(shutil.copytree(data, tmp_path / "copy"))):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "atconv"):
            metrics: Any = atconv.load(run).evaluate(where, split=split)
        assert (metrics.split, metrics.images) == (split, expected)
        assert metrics.trained_on == len(splits["train"])
        assert f"{metrics.trained_on} of " in caplog.text


def rename(data: Path) -> None:
    for path in sorted(data.glob("*/*.png")):
        path.rename(path.with_name(f"renamed {path.name}"))


def test_images_are_known_by_what_they_hold(runs: Runs, tmp_path: Path) -> None:
    run, data = runs["classification"]
    predictor = atconv.load(run)
    renamed = shutil.copytree(data, tmp_path / "renamed")
    rename(renamed)
    own, again = predictor.evaluate(), predictor.evaluate(str(renamed))
    assert metrics_of(again) == metrics_of(own)
    others = image_folder(tmp_path / "others", {"ant": 20, "bee": 20}, seed=1)  # of the same names
    metrics = predictor.evaluate(str(others))
    assert (metrics.split, metrics.trained_on) == ("all", 0)


@pytest.mark.parametrize("task", TASKS)
def test_converted_training_images_are_suspected_by_their_names(
    task: str, runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, data = runs[task]
    converted = shutil.copytree(data, tmp_path / "converted")
    (converted / "bee" / "bad.png").unlink(missing_ok=True)
    for path in [p for p in converted.rglob("*.png") if p.parent.name != "masks"]:
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    file = converted / "annotations.json"
    if file.is_file():
        file.write_text(file.read_text().replace(".png", ".bmp"))
    with caplog.at_level(logging.WARNING, "atconv"):
        metrics = atconv.load(run).evaluate(str(converted))
    assert (metrics.split, metrics.trained_on) == ("all", 0)
    [line] = [message for message in caplog.messages if "of the same names" in message]
    assert line.startswith(f"{len(saved(run)['train'])} of {metrics.images} images in {converted} are other")


@pytest.mark.parametrize("make", [classify, detect, segment])
def test_images_that_were_not_checked_are_known_by_their_names(
    make: Callable[..., Path], runs: Runs, tmp_path: Path
) -> None:
    task = {"classify": "classification", "detect": "detection", "segment": "segmentation"}[make.__name__]
    run, data = runs[task]
    unchecked = shutil.copytree(run, tmp_path / "run")
    content = json.loads((unchecked / "split.json").read_text())
    del content["digests"]
    (unchecked / "split.json").write_text(json.dumps(content))
    copy = shutil.copytree(data, tmp_path / "copy")
    if task == "classification":
        for name in ("bad.png", "copy of 1.png"):  # the run left them out
            (copy / "bee" / name).unlink(missing_ok=True)
    predictor = atconv.load(unchecked)
    assert metrics_of(predictor.evaluate(str(copy))) == metrics_of(predictor.evaluate())


def test_a_command_says_so_in_a_line_and_in_the_table(runs: Runs, tmp_path: Path) -> None:
    run, data = runs["segmentation"]
    ended = command("segment", "evaluate", run, data, "--split=train")
    assert ended.code == 0, ended.err
    assert f"12 of 12 images in {data} were trained on" in ended.err
    assert "train split, 12 of 12 images trained on" in ended.out
    metrics = json.loads((run / "evaluation" / "dense-train" / "metrics.json").read_text())
    assert metrics["trained_on"] == 12
