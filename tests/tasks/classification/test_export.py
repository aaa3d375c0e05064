"""`atconv export`: files that compute what the model does, checked before they are reported."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from packaging.version import Version
from PIL import Image

from atconv import deploy, load
from atconv.data.images import open_image
from atconv.data.sources.digits import DigitsSource
from atconv.data.transforms import EvalTransform
from atconv.io import file_digest
from atconv.tasks.classification.export import ClassificationExporter
from atconv.tasks.common import export as module
from atconv.tasks.common import export_files as files
from atconv.tasks.common.exporter import Exporter
from support.image_files import KINDS, saved_image
from support.tiny import TINY_ARGS, Finished, atconv, image_folder, train_tiny

EXAMPLE = Path(__file__).parents[3] / "examples" / "onnx_predict.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two blocks: each takes seconds to export."""
    model_args = TINY_ARGS | {"depths": [1, 0, 0, 1]}
    return train_tiny(tmp_path_factory.mktemp("exported") / "run", epochs=2, model_args=model_args)


@pytest.fixture(scope="module")
def exported(run: Path) -> tuple[Finished, Path]:
    ended = atconv("export", "--int8", run, "--calibration-images=64", "--batch-size=4")
    assert ended.code == 0, ended.err
    return ended, run / "export"


def test_files_compute_what_the_model_does(exported: tuple[Finished, Path], run: Path) -> None:
    _, folder = exported
    predictor = load(run)
    model, transform = predictor.model, predictor.transform
    images = torch.stack([transform(DigitsSource().read(i, "L")) for i in range(4)])
    with torch.inference_mode():
        expected = model(images)
    any_size, fixed = (deploy.open_onnx(folder / f"model{name}.onnx") for name in ("", "-batch4"))
    for call in (any_size, fixed):
        assert (call(images) - expected).abs().max() <= 1e-4 * expected.abs().max()
    with torch.inference_mode():
        larger = torch.randn(3, 1, 19, 12)
        assert (any_size(larger) - model(larger)).abs().max() <= 1e-4 * model(larger).abs().max()


def test_the_description_is_enough_to_use_the_files(
    exported: tuple[Finished, Path], run: Path, tmp_path: Path
) -> None:
    _, folder = exported
    description, predictor = json.loads((folder / "export.json").read_text()), load(run)
    assert description["classes"] == predictor.classes
    input_ = description["inputs"]["images"]
    assert (input_["channels"], input_["size"], input_["crop_mode"]) == (1, [8, 8], "center")
    prepare = runpy.run_path(str(EXAMPLE))["prepare"]
    for width, height in ((33, 33), (64, 43), (17, 13), (100, 37), (30, 22)):
        path = tmp_path / "image.png"
        DigitsSource().read(0, "L").resize((width, height)).save(path)
        with Image.open(path) as image:
            assert np.allclose(prepare(str(path), input_), predictor.transform(image).numpy(), atol=1e-6)
    assert "shorter side to 9 " in " ".join(input_["preparation"])
    assert set(description["files"]) == {"model.onnx", "model-batch4.onnx", "model-int8.onnx"}
    assert all(file["milliseconds"] > 0 and file["batch_size"] == 4 for file in description["files"].values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_example_prepares_every_kind_of_file_as_predict_does(
    kind: str, channels: int, tmp_path: Path
) -> None:
    transform = EvalTransform(
        {"input_size": (channels, 16, 16), "mean": (0.4,) * channels, "std": (0.3,) * channels}
    )
    path, prepare = saved_image(kind, tmp_path), runpy.run_path(str(EXAMPLE))["prepare"]
    expected = transform(open_image(path, transform.prepare.mode)).numpy()
    assert np.ptp(expected) > 0.1
    assert np.allclose(prepare(str(path), transform.describe()), expected, atol=1e-6)


def test_an_unreadable_file_does_not_end_the_example(
    exported: tuple[Finished, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, cut = saved_image("gray", tmp_path), tmp_path / "bad.png", tmp_path / "cut.jpg"
    bad.write_text("text")
    cut.write_bytes(saved_image("exif-6", tmp_path).read_bytes()[:700])
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(exported[1], [str(bad), str(cut), str(tmp_path / "none.png"), str(good)])
    shown = capsys.readouterr()
    assert [line.partition(":")[0] for line in shown.out.splitlines()] == [str(good)]
    names = [line.partition(":")[0] for line in shown.err.splitlines()]
    assert names == [str(bad), str(cut), str(tmp_path / "none.png")]
    with pytest.raises(SystemExit, match="none of the images could be read"):
        main(exported[1], [str(bad)])


class Bare(Exporter):
    """A model alone, for images 1 × 32 × 32."""

    output_names = ("out",)
    fixed_batch = True

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.eval()

    @property
    def graph(self) -> torch.nn.Module:
        return self.model

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, 32, 32

    def describe(self) -> dict[str, Any]:
        return {}

    def images(self, data: str | None, data_root: str | None, count: int) -> list[Image.Image]:
        return []

    def agreement(self, call: deploy.Call, images: list[Image.Image]) -> dict[str, float]:
        return {}


def changed_format(name: str, **changes: Any) -> Any:
    return mock.patch.dict(deploy.FORMATS, {name: replace(deploy.FORMATS[name], **changes)})


def test_only_a_size_that_cannot_change_is_taken_as_such(tmp_path: Path) -> None:
    def full_disk(*args: Any, **options: Any) -> Path:
        raise RuntimeError("no space left")

    plain = Bare(Plain())
    with changed_format("torch", write=full_disk), pytest.raises(RuntimeError, match=r"^no space left"):
        files.write_all(plain, "torch", 2, tmp_path)
    wrong = changed_format("torch", open=lambda path: lambda x: torch.zeros(len(x), 1))
    with wrong, pytest.raises(RuntimeError, match="does not compute"):
        files.write_all(plain, "torch", 2, tmp_path)
    [written] = files.write_all(Bare(Sized()), "torch", 2, tmp_path)
    assert written.accepts == "any batch of 32 × 32"


class Sized(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2:] == (32, 32)
        return x.mean((2, 3))


@pytest.mark.slow
def test_a_run_is_exported_for_an_older_opset(run: Path, tmp_path: Path) -> None:
    predictor = load(run)
    predictor.export(opset=17, out=str(tmp_path / "old"))
    graph = onnx.load(tmp_path / "old" / "model.onnx")
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 17)]
    assert not [node for node in graph.graph.node if node.op_type == "Gelu"]
    read = {name for node in graph.graph.node for name in node.input}
    assert {tensor.name for tensor in graph.graph.initializer} <= read
    shape: Any = (3, 1, 19, 12)
    call = deploy.open_onnx(tmp_path / "old" / "model.onnx")
    assert deploy.largest_error(call, predictor.model, [shape]) <= 1e-4


@pytest.mark.slow
def test_a_run_is_exported_for_openvino(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    options = ["--format=openvino", f"--out={tmp_path / 'out'}", "--calibration-images=64"]
    with mock.patch.object(module, "cpu_has_int8", return_value=False):
        ended = atconv("export", run, "--int8", *options)
    assert ended.code == 0, ended.err
    assert "this CPU has no instructions for int8 products (VNNI, AMX)" in ended.err + ended.out
    assert "int8: top-1" in ended.out
    assert "trained on" not in ended.out
    names = ["model.xml", "model.bin", "model-int8.xml", "model-int8.bin", "export.json"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
    size = (tmp_path / "out" / "model.bin").stat().st_size
    ended = atconv("export", run, "--fp16", *options[:2])
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "model.bin").stat().st_size < 0.7 * size


def test_the_command_shows_accuracy_and_speed(exported: tuple[Finished, Path], run: Path) -> None:
    ended, folder = exported
    assert "int8: top-1" in ended.out
    exporter = ClassificationExporter(load(run))
    exporter.prepare_int8(None, None, 64)
    assert f" on {len(exporter.measured)} images: " in ended.out
    assert "calibrated on 64 images" in ended.out
    for name in ("eager", "model.onnx", "model-batch4.onnx", "model-int8.onnx"):
        assert name in ended.out
    assert str(folder) in ended.out
    assert re.search(r"model\.onnx  +probability, 8 images  +\d\.\d+e-0[789]\n", ended.out), ended.out
    assert {path.name for path in folder.iterdir()} == {
        "export.json", "model.onnx", "model-batch4.onnx", "model-int8.onnx",
    }  # fmt: skip


def test_other_images_calibrate_and_measure(run: Path, tmp_path: Path) -> None:
    exporter = ClassificationExporter(load(run))
    images = image_folder(tmp_path / "images", dict.fromkeys(exporter.predictor.classes, 4))
    exporter.prepare_int8(str(images), None, 15)
    calibration, measured = exporter.calibration, exporter.measured
    assert (len(calibration), len(measured)) == (15, 25)
    assert not set(calibration.indices) & set(measured.indices)
    with pytest.raises(ValueError, match=r"has 40 images, all of which --calibration-images 40 would take"):
        exporter.prepare_int8(str(images), None, 40)


@pytest.mark.slow
def test_a_torch_program_is_written(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "atconv")
    folder = tmp_path / "new" / "out"
    folder.mkdir(parents=True)
    weights = file_digest(run / "model.safetensors")
    earlier = {"weights": weights, "files": {"model.onnx": {}, "gone.onnx": {}}}
    (folder / "export.json").write_text(json.dumps(earlier))
    (folder / "model.onnx").write_text("an earlier one")
    predictor = load(run)
    report = predictor.export(format="torch", out=str(folder))
    assert report.folder == folder
    # The last map of 8 pixels is one position, which torch.export would make a constant.
    assert "writing it for 8 × 8 only" in caplog.text
    files = json.loads((folder / "export.json").read_text())["files"]
    assert set(files) == {"model.onnx", "model.pt2"}
    assert files["model.pt2"]["accepts"] == "any batch of 8 × 8"
    assert [file["name"] for file in report.to_dict()["files"]] == ["model.pt2"]
    assert "any batch of 8 × 8" in str(report.tables()[0])
    shape: Any = (2, 1, 8, 8)
    assert deploy.largest_error(deploy.open_torch(folder / "model.pt2"), predictor.model, [shape]) <= 1e-4


def test_files_of_other_weights_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    earlier = {"weights": "others", "files": {"model.onnx": {}, "gone.onnx": {}, "../run.yaml": {}}}
    (folder / "export.json").write_text(json.dumps(earlier))
    for path in (folder / "model.onnx", folder / "notes.txt", tmp_path / "run.yaml"):
        path.write_text("old")
    assert module._earlier_files(folder, "others") == ({"model.onnx": {}}, [])
    kept, stale = module._earlier_files(folder, "these")
    assert (kept, stale) == ({}, [folder / "model.onnx"])
    with files.staged(folder, stale) as staging:
        for name in ("export.json", "model.pt2"):
            (staging / name).write_text("new")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "export.json": "new", "model.pt2": "new", "notes.txt": "old",
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run.yaml"]


def test_files_that_belong_together_are_replaced_together(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "model.mlpackage").mkdir(parents=True)
    for name in (
        "model.mlpackage/Manifest.json",
        "model.mlpackage/old",
        "model.xml",
        "model.bin",
        "notes.bin",
    ):
        (folder / name).write_text("old")
    earlier = {"weights": "others", "files": {"model.mlpackage": {}, "model.xml": {}}}
    (folder / "export.json").write_text(json.dumps(earlier))
    _, stale = module._earlier_files(folder, "these")
    with files.staged(folder, stale) as staging:
        (staging / "export.json").write_text("new")
    assert {path.name for path in folder.iterdir()} == {"export.json", "notes.bin"}
    for content in ("first", "second"):
        with files.staged(folder, []) as staging:
            (staging / "model.mlpackage").mkdir()
            (staging / "model.mlpackage" / "Manifest.json").write_text(content)
    assert (folder / "model.mlpackage" / "Manifest.json").read_text() == "second"


def test_the_minimum_size_is_reported(run: Path, tmp_path: Path) -> None:
    class Reducing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.max_pool2d(x, 3, 2, 1)[:, :, 1:].mean((2, 3)).repeat(1, 10)

    [written] = files.write_all(Bare(Reducing()), "torch", 2, tmp_path)
    older = Version(torch.__version__) < Version("2.12")  # takes one size of such a network
    assert written.accepts == (
        "any batch of 32 × 32" if older else "any batch, 5 pixels or more high and wide"
    )
    [written, _] = files.write_all(Bare(Plain()), "onnx", 2, tmp_path)
    assert written.accepts == "any batch and size"


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_description_is_named_before_any_work(run: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "export.json").write_text(text)
    ended = atconv("export", run, f"--out={tmp_path}")
    assert ended.code == 2
    assert "export.json describes no export: move it away" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]


def test_a_wrong_file_is_not_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.pt2").write_text("the earlier one")

    def write(graph: torch.nn.Module, path: Path, *arguments: Any) -> None:
        path.write_text("a wrong one")

    with (
        changed_format("torch", write=write, open=lambda path: lambda x: torch.zeros(len(x), 10)),
        pytest.raises(RuntimeError, match=r"does not compute what the model does: relative error 1\.0e"),
    ):
        load(run).export(format="torch", out=str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.pt2").read_text() == "the earlier one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format=torch", "--opset=17"], "opset is for onnx, got --format torch"),
        (["--opset=9"], "opset"),
        (["--fp16"], "fp16 is for openvino and coreml, got --format onnx"),
        (["--format=torch", "--int8"], "int8 is written as onnx or openvino only, got --format torch"),
        (["--calibration-images=8"], "are for int8: add --int8, or leave them out"),
        (["--batch-size=0"], "must be at least 1, got 0"),
        (["--format=tflite"], "tflite"),
    ],
)
def test_bad_options_get_one_line(run: Path, options: list[str], message: str) -> None:
    ended = atconv("export", run, *options)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_a_missing_run_is_rejected(tmp_path: Path) -> None:
    ended = atconv("export", tmp_path / "none")
    assert (ended.code, ended.err.strip()) == (2, f"atconv export: no such run folder: {tmp_path / 'none'}")
