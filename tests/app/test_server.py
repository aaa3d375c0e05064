"""What a stranger can do to the page by HTTP, and what `atconv app` takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image

import atconv
from atconv.app.server import running_page
from support.tiny import atconv as command
from support.tiny import trained_run


@pytest.fixture(scope="module")
def client(server: Any) -> Client:
    return Client(server.local_url, verbose=False)


def predict(client: Client, image: Any, top: Any = 3) -> tuple[Any, ...]:
    result: tuple[Any, ...] = client.predict(image, top, 0.5, False, api_name="/predict")
    return result


def test_the_page_says_what_the_predictor_says(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "gray.png"
    Image.linear_gradient("L").resize((20, 30)).save(file)
    _, label, *_ = predict(client, handle_file(file))
    [result] = atconv.load(trained_run())(file, top=3)
    shown = [(each["label"], each["confidence"]) for each in label["confidences"]]
    assert [name for name, _ in shown] == result.classes
    assert [share for _, share in shown] == pytest.approx(result.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=../../../../etc/passwd",
        "gradio_api/file=..%2F..%2F..%2F..%2Fetc%2Fpasswd",
        "gradio_api/file=RUN/config.json",
        "gradio_api/file=RUN/model.safetensors",
        "gradio_api/file=pyproject.toml",
        "gradio_api/file=file:///etc/passwd",
        "gradio_api/file=https://example.com/image.png",
        "gradio_api/file/etc/passwd",
        "gradio_api/proxy=https://example.hf.space/",
        "static/../../../../etc/passwd",
        "monitoring",
    ],
)
def test_no_file_of_the_machine_or_of_elsewhere_is_served(server: Any, path: str) -> None:
    answer = httpx.get(server.local_url + path.replace("RUN", str(trained_run())))
    assert answer.status_code in (400, 403, 404)
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "sent",
    [
        {"path": "/etc/passwd"},
        {"path": "RUN/confusion.png"},
        {"path": "https://example.com/image.png"},
        {"path": "gradio_api/file=/etc/passwd"},
    ],
)
def test_only_uploaded_files_are_read(server: Any, sent: dict[str, str]) -> None:
    image = {"path": sent["path"].replace("RUN", str(trained_run())), "meta": {"_type": "gradio.FileData"}}
    answer = call(server, image)
    assert answer.startswith("event: error")
    assert "root:" not in answer


def test_an_image_inside_a_link_is_not_decoded(server: Any) -> None:
    for image in ({"url": "data:image/png;base64,iVBORw0KGgo="}, "data:image/png;base64,iVBORw0KGgo=", 3):
        assert "no image was sent" in call(server, image) or "event: error" in call(server, image)


def call(server: Any, image: Any, *options: Any) -> str:
    """What the server answers to a program."""
    address = f"{server.local_url}gradio_api/call/predict"
    body = {"data": [image, *(options or (3, 0.5, False))]}
    event = httpx.post(address, json=body).json()["event_id"]
    return httpx.get(f"{address}/{event}", timeout=60).text.strip().split("\n\n")[-1]


def test_options_out_of_range_get_one_line(server: Any, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(file)
    assert "digits: top must be at least 1, got 0" in predict(client, handle_file(file), top=0)[0]
    assert "invalid literal" in predict(client, handle_file(file), top="many")[0]
    with pytest.raises(Exception, match="50000"):
        client.predict("0", 4, 50_000, 1.0, 0, api_name="/generate")


def test_uploads_are_gone_once_the_page_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(file)
    before = dict(os.environ)
    with running_page([trained_run()], examples=0, device="cpu") as page:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        predict(Client(page.local_url, verbose=False), handle_file(file))
        assert list(folder.rglob("a.png"))
        assert not page.share
    assert not folder.exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such-run"], "no such run folder: no-such-run"),
        (["RUN", "RUN"], "a run is named twice"),
        (["RUN", "--port", "70000"], "port must lie in 1 … 65535"),
        (["RUN", "--max-upload-mb", "0"], "max_upload_mb must be positive"),
        (["RUN", "--export", "RUN"], "is not empty: name a new folder with --export"),
        ([], "RUN is missing"),
    ],
)
def test_the_command_rejects_bad_input_in_one_line(arguments: list[str], expected: str) -> None:
    ended = command("app", *(argument.replace("RUN", str(trained_run())) for argument in arguments))
    assert ended.code == 2
    assert expected in ended.err
    assert ended.err.count("\n") == 1


def test_a_taken_port_is_named_in_one_line(server: Any) -> None:
    ended = command("app", trained_run(), f"--port={server.server_port}", "--examples=0", "--device=cpu")
    assert ended.code == 2
    assert str(server.server_port) in ended.err
    assert "Traceback" not in ended.err


def test_a_missing_gradio_is_named() -> None:
    with (
        mock.patch.dict("sys.modules", {"safehttpx": None}),
        pytest.raises(ModuleNotFoundError, match=r"pip install 'atconv\[app\]'"),
        running_page([trained_run()], examples=0),
    ):
        pass


def test_help_of_the_command_names_the_limits() -> None:
    ended = command("app", "--help")
    for option in ("--host", "--port", "--share", "--device", "--max-upload-mb", "--export", "--examples"):
        assert option in ended.out
    assert "(default: 127.0.0.1)" in ended.out
