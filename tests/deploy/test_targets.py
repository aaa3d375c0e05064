"""Files for OpenVINO, ExecuTorch and Core ML compute what the model computes, as far as they run here."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from packaging.version import Version

from atconv import deploy
from atconv.ops import processor
from support.helpers import tiny_attnet

SHAPES = [(2, 3, 64, 96), (1, 3, 64, 33), (3, 3, 70, 45), (1, 3, 8, 70)]


@pytest.mark.parametrize(
    "depths", [(1, 0, 0, 0), pytest.param((1, 1, 1, 1), marks=pytest.mark.slow)], ids=str
)
def test_openvino_computes_what_the_model_does(depths: tuple[int, ...], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model, images = tiny_attnet(glu_norm=True, depths=depths), torch.randn(2, 3, 64, 96)
    if Version(torch.__version__) < Version("2.12"):
        with pytest.raises(ValueError, match="OpenVINO does not read the graph that torch"):
            deploy.export_openvino(deploy.fold(model), tmp_path / "model.xml", images)
        return
    path = deploy.export_openvino(deploy.fold(model), tmp_path / "model.xml", images)
    assert deploy.largest_error(deploy.open_openvino(path), model, SHAPES) <= 1e-4  # type: ignore[arg-type]
    assert str(tmp_path.anchor + "tmp") not in path.read_text()


@pytest.mark.slow
def test_smaller_openvino_files_are_near(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    # In widths like these OpenVINO could not open a file whose kernels were made in int8.
    model, images = tiny_attnet(glu_norm=True, dims=(32, 64, 128, 240)), torch.randn(16, 3, 64, 96)
    path = deploy.export_openvino(deploy.fold(model), tmp_path / "model.xml", images[:2])
    small = deploy.quantize_openvino(path, tmp_path / "int8.xml", images.split(4))
    assert small.with_suffix(".bin").stat().st_size < 0.6 * path.with_suffix(".bin").stat().st_size
    call = deploy.open_openvino(small)
    assert 1e-4 < deploy.largest_error(call, model, SHAPES[:1]) < 0.2  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="int8 takes images to calibrate on"):
        deploy.quantize_openvino(path, tmp_path / "none.xml", [])
    half = deploy.export_openvino(deploy.fold(model), tmp_path / "half.xml", images[:2], fp16=True)
    assert half.with_suffix(".bin").stat().st_size < 0.7 * path.with_suffix(".bin").stat().st_size
    assert deploy.largest_error(deploy.open_openvino(half), model, SHAPES) <= 1e-2  # type: ignore[arg-type]


@pytest.mark.slow
def test_executorch_computes_what_the_model_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("executorch")
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.delitem(
        sys.modules, "executorch.backends.xnnpack.partition.xnnpack_partitioner", raising=False
    )
    model = deploy.fold(tiny_attnet(glu_norm=True))
    layouts = [weight.stride() for weight in model.parameters()]
    path = deploy.export_executorch(model, tmp_path / "model.pte", torch.randn(1, 3, 64, 96))
    assert deploy.largest_error(deploy.open_executorch(path), model, [(1, 3, 64, 96)]) <= 1e-4  # type: ignore[arg-type]
    assert logging.root.handlers == []
    assert [weight.stride() for weight in model.parameters()] == layouts


@pytest.mark.slow
@pytest.mark.parametrize("fp16", [False, True])
def test_coreml_is_converted(fp16: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    coremltools = pytest.importorskip("coremltools")
    model = deploy.fold(tiny_attnet(glu_norm=True))
    capfd.readouterr()  # of the import above
    path = deploy.export_coreml(model, tmp_path / "model.mlpackage", torch.randn(1, 3, 64, 96), fp16=fp16)
    assert capfd.readouterr() == ("", "")
    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    [image], [logits] = spec.description.input, spec.description.output
    assert list(image.type.multiArrayType.shape) == [1, 3, 64, 96]
    assert logits.name == "logits"


def test_a_processor_without_int8_is_recognized(tmp_path: Path) -> None:
    for flags, expected in (("fpu avx2", False), ("avx2 avx512_vnni", True), ("fp asimd asimddp", True)):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        with mock.patch.object(processor, "Path", return_value=tmp_path / "cpuinfo"):
            assert processor.cpu_has_int8() == expected
    with mock.patch.object(processor, "Path", return_value=tmp_path / "none"):
        assert processor.cpu_has_int8()
