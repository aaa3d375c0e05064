"""A trained generator through the one face of all runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import atconv
from atconv.engine.predictor import ImagePredictor
from atconv.tasks.generation.predictor import GenerationPredictor
from atconv.tasks.generation.sampling import SamplerConfig
from support.tiny import trained_run
from support.tiny_sit import generation_run, tiny_run_config, unconditional_run

OPTIONS = SamplerConfig(steps=2)


def predictor_of(run: Path) -> GenerationPredictor:
    predictor = atconv.load(run)
    assert isinstance(predictor, GenerationPredictor)
    return predictor


def test_a_run_opens_with_its_classes_configuration_and_pipeline() -> None:
    predictor = predictor_of(generation_run())
    assert predictor.task == "generation"
    assert predictor.classes == [str(i) for i in range(10)]
    assert predictor.config == tiny_run_config(epochs=2)
    assert predictor.model is predictor.pipeline.transformer
    assert not predictor.model.training


def test_a_call_makes_images_of_its_classes() -> None:
    predictor = predictor_of(generation_run())
    images = predictor(["3", 7], per_class=2, options=OPTIONS, seed=4)
    assert [image.label for image in images] == ["3", "3", "7", "7"]
    assert all(image.pixels.size == (8, 8) for image in images)
    sampled = predictor.sample([3, "7"], per_class=2, options=OPTIONS, seed=4)
    arrays = np.stack([np.asarray(image.pixels) for image in images])
    assert np.array_equal(arrays, sampled.images[..., 0])
    assert json.loads(json.dumps(images[2].to_dict())) == {"image": "2", "label": "7"}
    assert [image.label for image in predictor(options=OPTIONS)] == predictor.classes


def test_a_model_without_classes_makes_as_many_images_as_asked() -> None:
    predictor = predictor_of(unconditional_run())
    images = predictor(per_class=3, options=OPTIONS)
    assert [image.label for image in images] == [None] * 3
    with pytest.raises(ValueError, match="has no classes: leave class_labels out"):
        predictor([1])


def test_the_transform_makes_what_the_model_learns_from() -> None:
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    pixels = predictor_of(generation_run()).transform(Image.fromarray(gray))
    torch.testing.assert_close(pixels, torch.from_numpy(gray)[None].float() / 127.5 - 1)


def test_evaluation_is_pure_and_saved_where_asked(tmp_path: Path) -> None:
    run = generation_run()
    before = sorted(run.rglob("*"))
    predictor = predictor_of(run)
    metrics = predictor.evaluate(features=str(trained_run()), images=20, real_images=50, options=OPTIONS)
    assert (metrics.split, metrics.images, metrics.real_images) == ("train", 20, 50)
    assert sorted(run.rglob("*")) == before
    predictor.save_evaluation(metrics, tmp_path / "evaluation")
    saved = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert saved["frechet_distance"] == metrics.frechet_distance
    assert (saved["sampler"], saved["steps"]) == ("heun", 2)


def test_a_generator_predicts_nothing_of_images() -> None:
    predictor = predictor_of(generation_run())
    assert not isinstance(predictor, ImagePredictor)
    with pytest.raises(ValueError, match=r"no class 'image\.png': the model has 10.* takes classes"):
        predictor("image.png")
