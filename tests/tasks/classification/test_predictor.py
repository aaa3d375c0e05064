"""`atconv.load` of a classification run: one face for files, images and arrays, which writes no files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import atconv
from atconv.data.sources.digits import DigitsSource
from atconv.engine.predictor import Predictor
from atconv.models.attnet import AttNet
from atconv.tasks.classification.classifier import Classification
from atconv.tasks.classification.predictor import ClassificationPredictor
from support.tiny import tiny_config, trained_run


@pytest.fixture(scope="module")
def predictor() -> ClassificationPredictor:
    opened = atconv.load(trained_run())
    assert isinstance(opened, ClassificationPredictor)
    return opened


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return DigitsSource().read(7, "L")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_opens_with_what_is_needed_to_use_it(predictor: ClassificationPredictor) -> None:
    assert isinstance(predictor, Predictor)
    assert predictor.task == "classification"
    assert predictor.run.path == trained_run()
    assert isinstance(predictor.model, AttNet)
    assert not any(module.training for module in predictor.model.modules())
    assert predictor.classes == [str(digit) for digit in range(10)]
    assert predictor.config == tiny_config(epochs=2)
    assert predictor.device == torch.device("cpu")


def test_a_path_may_be_text(predictor: ClassificationPredictor) -> None:
    assert atconv.load(str(trained_run())).classes == predictor.classes


def test_files_images_and_arrays_have_the_same_result(
    predictor: ClassificationPredictor, image: Image.Image, tmp_path: Path
) -> None:
    image.save(tmp_path / "seven.png")
    gray = np.asarray(image)
    forms: list[Any] = [
        tmp_path / "seven.png",
        str(tmp_path / "seven.png"),
        image,
        image.convert("RGB"),
        image.convert("RGBA"),
        gray,
        gray[..., None],
        np.stack([gray] * 3, 2),
    ]
    [expected] = predictor(forms[0])
    assert isinstance(expected, Classification)
    together = predictor(forms)
    assert len(together) == len(forms)
    for form, result in zip(forms, together, strict=True):
        [alone] = predictor(form)
        for other in (alone, result):
            assert other.classes == expected.classes
            assert other.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert [result.image for result in together[:3]] == [str(forms[0]), forms[1], "2"]


def test_a_result_is_plain_data(predictor: ClassificationPredictor, image: Image.Image) -> None:
    [result] = predictor(image, top=3)
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain == {
        "image": "0",
        "error": None,
        "classes": result.classes,
        "probabilities": result.probabilities,
    }
    assert len(result.classes) == 3


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_that_is_no_image_raises(predictor: ClassificationPredictor, array: Any) -> None:
    with pytest.raises(ValueError, match=r"an image array is H W, H W 1 or H W 3 of uint8, got "):
        predictor(array)
    [result] = predictor.predict([array])
    assert "an image array is" in str(result.error)


def test_a_file_that_cannot_be_read_raises_or_is_a_result_with_an_error(
    predictor: ClassificationPredictor, image: Image.Image, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(ValueError, match=r"bad\.png: not a readable image"):
        predictor(tmp_path / "bad.png")
    with pytest.raises(FileNotFoundError):
        predictor(tmp_path / "none.png")
    first, bad, last = predictor.predict([image, tmp_path / "bad.png", image], batch_size=2)
    assert "not a readable image" in str(bad.error)
    assert bad.classes == bad.probabilities == []
    assert first.classes == last.classes == predictor(image)[0].classes


@pytest.mark.parametrize(("options", "name"), [({"batch_size": 0}, "batch_size"), ({"top": 0}, "top")])
def test_an_option_below_one_raises(
    predictor: ClassificationPredictor, image: Image.Image, options: dict[str, int], name: str
) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        list(predictor.predict([image], **options))


def test_predicting_and_evaluating_write_nothing(image: Image.Image, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run(), tmp_path / "run"))
    before = contents(tmp_path)
    predictor: Any = atconv.load(run)
    predictor(image)
    list(predictor.predict([image]))
    metrics = predictor.evaluate(workers=0)
    assert contents(tmp_path) == before
    saved = json.loads((run / "metrics.json").read_text())
    assert metrics.split == saved["split"] == "test"
    for name in ("images", "top1", "top5", "calibration_error", "per_class"):
        assert metrics.to_dict()[name] == saved[name], name


def test_an_evaluation_is_saved_where_it_is_asked_for(
    predictor: ClassificationPredictor, tmp_path: Path
) -> None:
    metrics = predictor.evaluate(split="val", workers=0)
    predictor.save_evaluation(metrics, tmp_path / "here", {"note": "mine"})
    saved = json.loads((tmp_path / "here" / "metrics.json").read_text())
    assert saved.pop("note") == "mine"
    assert saved == json.loads(json.dumps(metrics.to_dict()))
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "confusion.png",
        "metrics.json",
        "mistakes.png",
        "per_class.csv",
        "predictions.csv",
    }


def test_results_of_classification_are_not_drawn(
    predictor: ClassificationPredictor, image: Image.Image, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="results of classification are not drawn"):
        predictor.save_predictions(predictor(image), tmp_path)


def test_without_its_configuration_a_run_predicts_and_needs_data_to_be_evaluated(
    image: Image.Image, tmp_path: Path, predictor: ClassificationPredictor
) -> None:
    run = Path(shutil.copytree(trained_run(), tmp_path / "run"))
    (run / "config.yaml").unlink()
    opened: Any = atconv.load(run)
    assert opened.config is None
    assert opened(image)[0].probabilities == predictor(image)[0].probabilities
    with pytest.raises(ValueError, match=r"has no config\.yaml that says what it was trained on: give DATA"):
        opened.evaluate()
    assert opened.evaluate("digits", workers=0).images == len(DigitsSource())
