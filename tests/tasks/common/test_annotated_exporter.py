"""Detectors and segmenters as files say of every image what `predict` says."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from atconv import load
from atconv.data.boxes.split import decode_mask
from support.image_files import saved_image
from support.tiny import atconv
from support.tiny_dense import detect, detection_run, segment, segmentation_run

EXAMPLE = Path(__file__).parents[3] / "examples" / "onnx_predict.py"
FILES = ["exif-6", "exif-7", "rgba", "16-bit", "palette-transparent", "cmyk", "float-0-1", "wide", "high"]


def image_file(kind: str, folder: Path) -> Path:
    if kind not in ("wide", "high"):
        return saved_image(kind, folder)
    noise = np.random.default_rng(0).integers(0, 256, (12, 170, 3), dtype=np.uint8)
    Image.fromarray(noise if kind == "wide" else noise.transpose(1, 0, 2)).save(folder / "long.png")
    return folder / "long.png"


def exported(run: Path, folder: Path) -> tuple[Any, Any]:
    """Predictor of a run, and a function of the example: image file → outputs by name."""
    predictor = load(run)
    report = predictor.export(out=str(folder))
    [file] = report.files
    assert file.agreement, "not compared with predict"
    example = runpy.run_path(str(EXAMPLE))
    description = json.loads((folder / "export.json").read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == list(description["outputs"])
    assert description["classes"] == predictor.classes

    def outputs(path: Path) -> dict[str, Any]:
        image = example["prepare"](str(path), description["inputs"]["images"])
        return dict(zip(names, session.run(None, {"images": image[None]}), strict=True))

    return predictor, outputs


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return exported(detection_run(), tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return exported(segmentation_run(), tmp_path_factory.mktemp("segmenter"))


def check_detections(predictor: Any, outputs: dict[str, Any], path: Path) -> None:
    [expected] = predictor(str(path), threshold=0.0)
    assert expected.classes
    assert [predictor.classes[label] for label in outputs["labels"]] == expected.classes
    np.testing.assert_allclose(outputs["boxes"], expected.boxes, atol=1e-2)
    np.testing.assert_allclose(outputs["scores"], expected.scores, atol=1e-4)
    if expected.masks is not None:
        masks = [decode_mask(mask, *mask["size"]) for mask in expected.masks]
        assert ((outputs["masks"] > 0.5) != np.stack(masks)).mean() < 1e-3


@pytest.mark.parametrize("kind", FILES)
def test_a_detector_detects_as_predict_does(detector: tuple[Any, Any], kind: str, tmp_path: Path) -> None:
    predictor, outputs = detector
    path = image_file(kind, tmp_path)
    check_detections(predictor, outputs(path), path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_a_segmenter_segments_as_predict_does(segmenter: tuple[Any, Any], kind: str, tmp_path: Path) -> None:
    predictor, outputs = segmenter
    path = image_file(kind, tmp_path)
    [expected] = predictor(str(path))
    mask = outputs(path)["mask"]
    assert mask.shape[1:] == expected.mask.shape
    assert (mask[0] != expected.mask).mean() <= 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mask_rcnn", "retinanet"])
@pytest.mark.parametrize("opset", [17, 20])
def test_other_detectors_are_exported(architecture: Any, opset: Any, tmp_path: Path) -> None:
    options = {"detector_args": {"score_thresh": 0.0}} if architecture == "retinanet" else {}
    run = detect(tmp_path / "run", architecture=architecture, **options)
    if architecture == "retinanet":  # it has hardly learned: scores are equal, and of those any may be kept
        weights = load_file(run / "model.safetensors")
        for name in (name for name in weights if "classification_head" in name and name.endswith("weight")):
            weights[name] = 10 * weights[name]
        save_file(weights, run / "model.safetensors")
    predictor, outputs = exported(run, tmp_path / "out")
    for kind in FILES:
        path = image_file(kind, tmp_path)
        check_detections(predictor, outputs(path), path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["fpn", "upernet"])
def test_other_segmenters_are_exported(architecture: Any, tmp_path: Path) -> None:
    run = segment(tmp_path / "run", architecture=architecture, segmenter_args={}, flip_tta=True)
    predictor, outputs = exported(run, tmp_path / "out")
    for kind in FILES:
        path = image_file(kind, tmp_path)
        [expected] = predictor(str(path))
        assert (outputs(path)["mask"][0] != expected.mask).mean() <= 2e-3


def test_averages_over_mirror_images_do_not_go_to_executorch(tmp_path: Path) -> None:
    run = Path(shutil.copytree(segmentation_run(), tmp_path / "run"))
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"flip_tta": false', '"flip_tta": true'))
    with pytest.raises(ValueError, match=r"written as onnx .*, got --format executorch: .* mirror images"):
        load(run).export(format="executorch")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["unet", "upernet"])
@pytest.mark.parametrize("format", ["executorch", "coreml"])
def test_a_segmenter_goes_to_phones(architecture: Any, format: Any, tmp_path: Path) -> None:
    tools = pytest.importorskip({"executorch": "executorch", "coreml": "coremltools"}[format])
    options = {} if architecture == "unet" else {"segmenter_args": {}}
    run = segment(tmp_path / "run", architecture=architecture, flip_tta=format == "coreml", **options)
    [file] = load(run).export(format=format, out=str(tmp_path / "out")).files
    assert file.accepts == "one image of 40 × 56"
    if format == "executorch":
        assert file.agreement, "not compared with predict"
    else:
        spec = tools.models.MLModel(str(tmp_path / "out" / file.name), skip_model_load=True).get_spec()
        [images], [mask] = spec.description.input, spec.description.output
        assert list(images.type.multiArrayType.shape) == [1, 1, 40, 56]
        assert (mask.name, list(mask.type.multiArrayType.shape)) == ("mask", [1, 40, 56])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format=coreml"], "a detection run is written as onnx or web, got --format coreml"),
        (["--format=openvino"], "OpenVINO gives a box"),
        (["--int8"], "int8 is for classification runs, this is a detection run"),
        (["--data-root=x"], "data_root is for classification runs"),
        (["--data=none"], "none"),
    ],
)
def test_bad_options_get_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    ended = atconv("export", detection_run(), *options, f"--out={tmp_path / 'out'}")
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_is_exported_where_its_data_are_gone(tmp_path: Path) -> None:
    run = Path(shutil.copytree(detection_run(), tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    data = load(run).config.data
    (run / "config.yaml").write_text(text.replace(data, str(tmp_path / "gone")))
    ended = atconv("export", run)
    assert ended.code == 0, ended.err
    assert "not compared with predict on images" in ended.out
