"""Packages that are not installed are named with the line that installs them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import metadata
from pathlib import Path

import pytest

from atconv.data.formats import open_boxes
from atconv.deploy import FORMATS, open_onnx
from atconv.extras import PACKAGES, name_missing_extra
from atconv.models.segmenters import segmenter
from support.tiny import atconv, trained_run
from support.tiny_dense import shared_data

MODULES = {"pyyaml": "yaml", "scikit_learn": "sklearn"}


@pytest.mark.parametrize("extra", PACKAGES)
def test_every_package_of_an_extra_is_known(extra: str) -> None:
    lines = metadata("atconv").get_all("Requires-Dist") or []
    names = [re.split(r"[^\w-]", line)[0] for line in lines if re.search(rf"extra == .{extra}\b", line)]
    modules = {MODULES.get(name, name) for name in (name.lower().replace("-", "_") for name in names)}
    others = {"export"} if extra == "openvino" else {"train"}  # come along
    assert modules - {"atconv"} <= {*PACKAGES[extra], *(name for other in others for name in PACKAGES[other])}


@pytest.mark.parametrize(
    ("module", "extra", "call"),
    [
        ("segmentation_models_pytorch", "dense", lambda: segmenter("attnet_xxs", 2)),
        ("onnxruntime", "export", lambda: open_onnx(Path("model.onnx"))),
        ("faster_coco_eval.core", "dense", lambda: open_boxes(shared_data(), masks=True)),
    ],
)
def test_python_names_the_line_that_installs_it(
    module: str, extra: str, call: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(call)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"pip install 'atconv[{extra}]'")):
        call()


def test_what_is_imported_late_names_the_line_that_installs_it() -> None:
    code = """
import sys; sys.modules['diffusers'] = None
for line in (
    "import atconv.diffusion",
    "from atconv.models import SiT",
    "from atconv.tasks import get_task; get_task('generation').predictor_class()",
):
    try:
        exec(line)
    except ModuleNotFoundError as error:
        print(error)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines() == ["diffusers is missing: pip install 'atconv[generation]'"] * 3


def test_a_command_names_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `mock.patch.dict` would drop what torch imports meanwhile, which torch cannot import twice.
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    written = replace(FORMATS["onnx"], write=lambda graph, path, *arguments, **options: path.touch())
    monkeypatch.setitem(FORMATS, "onnx", written)  # takes long, and needs other packages
    ended = atconv("export", trained_run(), f"--out={tmp_path}")
    assert ended.code == 2
    assert ended.err == "atconv export: onnxruntime is missing: pip install 'atconv[export]'\n"


def test_other_modules_are_left_alone() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such'"), name_missing_extra():
        import no_such  # noqa: F401
