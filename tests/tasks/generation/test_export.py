"""A generator as a file: samples of the loop in the example are those of the pipeline."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atconv import load
from atconv.diffusion import ODEScheduler
from atconv.tasks.generation.export import GenerationExporter
from support.tiny import atconv
from support.tiny_sit import TINY_RUN, generation_run, train_tiny_sit

EXAMPLE = Path(__file__).parents[3] / "examples" / "onnx_generate.py"


def samples_of(predictor: Any, noise: Any, labels: list[int], guidance: float) -> Any:
    pipeline = predictor.pipeline
    config = pipeline.config
    pipeline.scheduler = ODEScheduler(interpolant=config.interpolant, prediction=config.prediction)
    of = {"class_labels": labels} if predictor.classes else {"num_images_per_prompt": len(noise)}
    steps: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": guidance, "output_type": "latent"}
    return pipeline(latents=torch.from_numpy(noise), **of, **steps).images.numpy()


def check_samples(run: Path, folder: Path, guidance: float, size: tuple[int, int] = (8, 8)) -> None:
    predictor = load(run)
    [file] = predictor.export(out=str(folder), batch_size=2).files
    assert file.accepts == "any batch and size that 2 divides"
    assert max(file.agreement.values()) < 1e-4
    noise = np.random.default_rng(0).standard_normal((3, 1, *size), np.float32)
    sample = runpy.run_path(str(EXAMPLE))["sample"]
    actual = sample(folder, noise, [3, 7, 9], steps=4, guidance=guidance)
    expected = samples_of(predictor, noise, [3, 7, 9], guidance)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_the_loop_of_the_example_samples_as_the_pipeline_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_samples(generation_run(), tmp_path, guidance=2.0)
    main = runpy.run_path(str(EXAMPLE))["main"]
    capsys.readouterr()  # what the export has logged, where an earlier test has set that up
    main(tmp_path, tmp_path / "images", labels=[3, 7], count=1, seed=0, steps=2, guidance=1.0)
    with Image.open(tmp_path / "images" / "1.png") as image:
        assert (image.size, image.mode) == ((8, 8), "L")
    assert capsys.readouterr().out == f"2 images in {tmp_path / 'images'}\n"
    with pytest.raises(SystemExit, match=r"labels are 0 … 9, got \[10\]"):
        main(tmp_path, tmp_path / "images", labels=[10], count=1, seed=0)


def test_a_model_without_classes_is_exported(tmp_path: Path) -> None:
    model_args = TINY_RUN["model_args"] | {"depth": 1}
    run = train_tiny_sit(tmp_path / "run", conditional=False, model_args=model_args)
    check_samples(run, tmp_path / "out", guidance=1.0)
    assert "labels" not in json.loads((tmp_path / "out" / "export.json").read_text())["inputs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("sit_s_2", {"interpolant": "gvp", "prediction": "noise"}),
        ("sit_hybrid_s_2", {"interpolant": "vp", "prediction": "velocity"}),
        ("sit_hybrid_s_2", {"prediction": "score"}),
    ],
)
def test_every_family_and_prediction_becomes_a_velocity(
    model: str, options: dict[str, Any], tmp_path: Path
) -> None:
    run = train_tiny_sit(tmp_path / "run", model=model, **options)
    check_samples(run, tmp_path / "out", guidance=1.5)


def test_another_velocity_is_rejected() -> None:
    exporter = GenerationExporter(load(generation_run()))
    with torch.inference_mode():
        assert max(exporter.agreement(exporter.graph, []).values()) < 1e-4
        with pytest.raises(ValueError, match="samples differ by"):
            exporter.agreement(lambda *inputs: 1.1 * exporter.graph(*inputs) + 0.1, [])


def test_data_are_not_for_generators(tmp_path: Path) -> None:
    ended = atconv("export", generation_run(), "--data=digits", f"--out={tmp_path / 'out'}")
    assert ended.code == 2
    assert ended.err == (
        "atconv export: a generator is compared with its own samples: leave data and data_root out\n"
    )
