"""`atconv app RUN --export FOLDER`: a Hugging Face Space that runs where the run is not."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
import yaml
from gradio_client import Client, handle_file
from packaging.requirements import Requirement
from PIL import Image

import atconv
from atconv.app.space import write_space
from support.tiny import atconv as command
from support.tiny import image_folder, train_tiny, trained_run
from support.tiny_sit import generation_run


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of images in folders, whose names are nobody's business."""
    root = tmp_path_factory.mktemp("private")
    data = image_folder(root / "patients", {"a": 12, "b": 12})
    return train_tiny(root / "run", data=str(data), test_fraction=0.2, val_fraction=0.2)


def texts(folder: Path) -> str:
    return "\n".join(
        file.read_bytes().decode("utf-8", "replace") for file in sorted(folder.rglob("*")) if file.is_file()
    )


def test_a_space_holds_the_model_and_nothing_of_the_data(folder_run: Path, tmp_path: Path) -> None:
    ended = command("app", folder_run, f"--export={tmp_path / 'space'}")
    assert ended.code == 0, ended.err
    assert "no images (--examples N copies some) of their data" in ended.out
    package = shutil.move(tmp_path / "space/atconv", tmp_path / "atconv")
    files = {str(file.relative_to(tmp_path / "space")) for file in (tmp_path / "space").rglob("*.*")}
    model = {f"models/1-run/{name}" for name in ("config.json", "model.safetensors", "metrics.json")}
    assert files == {"app.py", "requirements.txt", "README.md", *model}
    assert "private" not in texts(tmp_path / "space")
    assert "patients" not in texts(tmp_path / "space")
    assert contents(Path(package)) == contents(Path(atconv.__file__).parent)


def contents(package: Path) -> dict[str, bytes]:
    files = [path for path in package.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    return {str(path.relative_to(package)): path.read_bytes() for path in files}


def test_a_released_package_is_named_and_not_copied(tmp_path: Path) -> None:
    with mock.patch("atconv.app.space.distribution") as found:
        found.return_value.read_text.return_value = None
        write_space([generation_run()], tmp_path / "space")
    assert not (tmp_path / "space/atconv").exists()
    requirements = (tmp_path / "space/requirements.txt").read_text()
    assert requirements == f"atconv[app,generation]=={atconv.__version__}\n"
    assert "`requirements.txt` names it" in (tmp_path / "space/README.md").read_text()


def test_examples_are_copied_when_asked_for(folder_run: Path, tmp_path: Path) -> None:
    ended = command("app", folder_run, f"--export={tmp_path / 'space'}", "--examples=2")
    assert "2 images of their data" in ended.out
    assert len(list((tmp_path / "space/examples").glob("*.png"))) == 2
    assert "2 images of the validation data" in (tmp_path / "space/README.md").read_text()


def test_the_front_matter_is_that_of_a_gradio_space(tmp_path: Path) -> None:
    run = tmp_path / 'it\'s "mine": yes'
    shutil.copytree(trained_run(), run)
    write_space([run, generation_run()], tmp_path / "space")
    _, front, text = (tmp_path / "space/README.md").read_text(encoding="utf-8").split("---\n", 2)
    content = yaml.safe_load(front)
    assert content["title"].startswith(run.name)
    assert (content["sdk"], content["app_file"]) == ("gradio", "app.py")
    assert content["sdk_version"].startswith("6.")
    assert "top-1" in text
    assert "it is in `atconv/`" in text
    requirements = [
        Requirement(each) for each in (tmp_path / "space/requirements.txt").read_text().split("\n")[:-1]
    ]
    assert {"torch", "timm", "gradio", "jsonargparse", "diffusers"} <= {each.name for each in requirements}
    assert not {"onnx", "faster-coco-eval", "pytest", "atconv"} & {each.name for each in requirements}
    assert all(version(each.name) in each.specifier and not each.marker for each in requirements)
    compile((tmp_path / "space/app.py").read_text(encoding="utf-8"), "app.py", "exec")


@pytest.mark.slow
def test_the_space_predicts_without_a_network(folder_run: Path, tmp_path: Path) -> None:
    space, image = tmp_path / "space", tmp_path / "image.png"
    write_space([folder_run], space, examples=2)
    Image.linear_gradient("L").save(image)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    environment["TMPDIR"] = str(tmp_path / "temporary")
    (tmp_path / "temporary").mkdir()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-v", "app.py"], cwd=space, env=environment, stdout=log, stderr=log
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/config", process)
        client = Client(f"http://127.0.0.1:{port}/", verbose=False)
        _, label, *_ = client.predict(handle_file(image), 2, 0.5, False, api_name="/predict")
        assert list((tmp_path / "temporary").glob("atconv-app-*/**/image.png"))
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert not list((tmp_path / "temporary").glob("atconv-app-*"))
    finally:
        process.kill()
        process.wait()
    [result] = atconv.load(folder_run)(image, top=2)
    assert label["label"] == result.classes[0]
    assert label["confidences"][0]["confidence"] == pytest.approx(result.probabilities[0], abs=1e-5)
    assert f"{space}/atconv/app/server.py" in (tmp_path / "log").read_text(errors="replace")


def wait_for(address: str, process: subprocess.Popen[Any], seconds: float = 90) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "the process has ended"
        try:
            httpx.get(address)
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise TimeoutError(address)
