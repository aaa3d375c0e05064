"""`atconv export RUN --format web`: a page that says in a browser what `predict` says."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models._hub import save_config_for_hf

import atconv
from atconv.data.transforms import EvalTransform
from atconv.deploy import web
from atconv.io import save_tensors
from support.browser import browser, served, skip_or_fail
from support.helpers import randomize
from support.tiny import TINY_ARGS
from support.tiny import atconv as command
from support.tiny_dense import detect, segmentation_run, shared_data

CLASSES = [
    "cat",
    "dog",
    "</script><b>fox",
    "a very long name of a class that has to be wrapped somewhere",
    "owl",
    "𝄞",
]


def classifier(folder: Path, channels: int = 3) -> Path:
    """A classifier whose weights matter, as a run has it."""
    options = {**TINY_ARGS, "in_chans": channels, "num_classes": len(CLASSES)}
    model: Any = randomize(timm.create_model("attnet_xxs", **options))
    data = {"input_size": (channels, 32, 32), "mean": (0.4,) * channels, "std": (0.3,) * channels}
    folder.mkdir()
    save_config_for_hf(
        model, str(folder / "config.json"), model_config={"label_names": CLASSES}, data_config=data
    )
    content = json.loads((folder / "config.json").read_text())
    content["model_args"].pop("num_classes", None)
    (folder / "config.json").write_text(json.dumps(content))
    save_tensors(model.state_dict(), folder / "model.safetensors")
    return folder


def images(folder: Path) -> list[Path]:
    """An image file of each kind that browsers read."""
    noise = np.random.default_rng(0)

    def pixels(height: int, width: int, channels: int = 3) -> Image.Image:
        small = Image.fromarray(noise.integers(0, 256, (9, 12, channels), dtype=np.uint8))
        return small.resize((width, height), Image.Resampling.BILINEAR)

    exif = Image.Exif()
    exif[0x0112] = 6
    color = pixels(90, 120)
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "color.png": (color, {}),
        "upright.jpg": (color, {"quality": 90}),
        "turned.jpg": (color, {"exif": exif, "quality": 90, "subsampling": 0}),
        "transparent.png": (pixels(70, 50, 4), {}),
        "palette.png": (color.quantize(16), {"transparency": bytes(range(0, 256, 16))}),
        "gray.png": (color.convert("L"), {}),
        "wide.png": (pixels(31, 310), {}),
        "tiny.png": (pixels(3, 2), {}),
        "lossless.webp": (color, {"lossless": True}),
    }
    for name, (image, options) in saved.items():
        image.save(folder / name, **options)
    return [folder / name for name in saved]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_images_are_prepared_to_the_bit_as_pillow_does(tmp_path: Path) -> None:
    noise, cases, expected = np.random.default_rng(0), [], []
    for width, height in ((37, 29), (8, 8), (310, 31), (31, 310), (5, 9), (223, 224), (1, 1)):
        for i, interpolation in enumerate(("bicubic", "bilinear", "nearest")):
            channels, size = (1, 3)[(i + width) % 2], (8, 9, 24)[i]
            about = {
                "input_size": (channels, size, size),
                "mean": (0.4,) * channels,
                "std": (0.3,) * channels,
            }
            transform = EvalTransform(about | {"interpolation": interpolation})
            pixels = noise.integers(0, 256, (height, width, 4), dtype=np.uint8)
            expected.append(transform(Image.fromarray(pixels)).flatten())
            data = base64.b64encode(pixels.tobytes()).decode()
            cases.append({"width": width, "height": height, "data": data, "input": transform.describe()})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    shutil.copy(Path(web.__file__).with_name("page") / "prepare.js", tmp_path / "prepare.mjs")
    (tmp_path / "run.mjs").write_text(
        "import fs from 'node:fs'; import { prepare } from './prepare.mjs';\n"
        "const cases = JSON.parse(fs.readFileSync('cases.json'));\n"
        "const run = (c) => Array.from(prepare({ ...c, data: Buffer.from(c.data, 'base64') }, c.input));\n"
        "console.log(JSON.stringify(cases.map(run)));\n"
    )
    done = subprocess.run(["node", "run.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    for case, actual, wanted in zip(cases, json.loads(done.stdout), expected, strict=True):
        # Of 255 levels one is 0.013 here.
        torch.testing.assert_close(torch.tensor(actual), wanted, atol=1e-5, rtol=0, msg=str(case["input"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("web") / "birds & <cats>")


@contextmanager
def opened_page(run: Path, folder: Path) -> Iterator[Any]:
    """The page of a run, open in a browser."""
    if not (web.cached_runtime() / "ort.wasm.bundle.min.mjs").is_file():
        skip_or_fail("onnxruntime-web is not there: make test fetches it where npm is installed")
    atconv.load(run).export(format="web", out=str(folder))
    with served(folder) as address, browser() as chromium:
        opened = chromium.new_page(viewport={"width": 1280, "height": 800})
        opened.requests, opened.problems = [], []
        opened.on("request", lambda request: opened.requests.append(request.url))
        opened.on("console", lambda message: opened.problems.append(message.text))
        opened.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.goto(address)
        opened.wait_for_selector("body[data-ready]")
        assert opened.inner_text("#error") == "", opened.problems
        opened.address = address
        yield opened


@pytest.fixture(scope="module")
def page(run: Path) -> Iterator[Any]:
    with opened_page(run, run / "export" / "web") as opened:
        yield opened


def await_text(page: Any, selector: str, start: str) -> None:
    """Wait until the text of an element starts so."""
    page.wait_for_function(
        "([selector, start]) => document.querySelector(selector).textContent.startsWith(start)",
        arg=[selector, start],
    )


@torch.inference_mode()
def test_the_page_says_what_predict_says(run: Path, page: Any, tmp_path: Path) -> None:
    predictor: Any = atconv.load(run)
    for path in images(tmp_path):
        expected = predictor.model(predictor.transform(Image.open(path))[None])[0]
        data = base64.b64encode(path.read_bytes()).decode()
        logits = page.evaluate(
            "async (data) => { const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));"
            "  const { predict } = await import('./page.js');"
            "  return Array.from((await predict(new File([bytes], 'image'))).outputs.logits.data); }",
            data,
        )
        torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-3, rtol=0, msg=path.name)
        page.set_input_files("#file", path)
        await_text(page, "#name", path.name)
        [result] = predictor([path])
        assert page.locator("#results .name").all_text_contents() == result.classes
        shares = page.locator("#results .share").all_text_contents()
        assert shares == [f"{100 * share:.1f} %" for share in result.probabilities]
    assert all(url.startswith((page.address, "blob:", "data:")) for url in page.requests)
    assert page.problems == []


def test_files_that_are_no_images_get_one_line(page: Any, tmp_path: Path) -> None:
    good = images(tmp_path)[0]
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("cut.png", "text.txt", "empty.jpg"):
        page.set_input_files("#file", tmp_path / name)
        await_text(page, "#error", name)
        assert "is not an image that this browser reads" in page.inner_text("#error")
        assert page.locator("#results li").count() == 0
    page.set_input_files("#file", good)
    page.wait_for_selector("#results li")
    assert page.inner_text("#error") == ""


def test_files_and_images_too_large_are_not_decoded(page: Any, tmp_path: Path) -> None:
    Image.new("1", (6000, 5000)).save(tmp_path / "many.png")
    (tmp_path / "heavy.png").write_bytes(images(tmp_path)[0].read_bytes() + bytes(20_000_000))
    assert page.inner_text("#limits") == "Up to 20 MB and 25 megapixels."
    for name, reason in (
        ("many.png", "has 6000 × 5000 pixels; up to 25 megapixels are taken. Make it smaller."),
        ("heavy.png", "has 21 MB; up to 20 MB are taken. Make it smaller."),
    ):
        page.set_input_files("#file", tmp_path / name)
        await_text(page, "#error", name)
        assert page.inner_text("#error") == f"{name} {reason}"
        assert page.locator("#results li").count() == 0


def test_dropped_and_pasted_images_are_taken(page: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    for kind, field in (("DragEvent", "dataTransfer"), ("ClipboardEvent", "clipboardData")):
        name = f"{kind}.png"
        page.evaluate(
            "([data, name, kind, field]) => { const transfer = new DataTransfer();"
            "  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));"
            "  transfer.items.add(new File([bytes], name, { type: 'image/png' }));"
            "  const event = kind === 'DragEvent' ? 'drop' : 'paste';"
            "  document.dispatchEvent(new window[kind](event, { [field]: transfer, cancelable: true })); }",
            [data, name, kind, field],
        )
        await_text(page, "#name", name)


def test_the_page_is_one_of_its_own_on_narrow_screens_and_by_keyboard(page: Any) -> None:
    assert page.inner_text("#title") == "birds & <cats>"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert page.locator("#classes li").all_text_contents() == CLASSES
    page.set_viewport_size({"width": 1280, "height": 800})


def test_npm_is_asked_for_one_package_and_what_it_gives_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"npm is missing.* install Node\.js, or name a folder"):
        web.fetch_runtime()
    npm = tmp_path / "npm"
    for script, message in (
        ('echo "npm error code ENOTFOUND" >&2; exit 1', r"npm cannot fetch \S+ \(npm error code ENO"),
        ("echo other > other.tgz", r"npm gave another onnxruntime-web@\S+ than was published"),
    ):
        checked = f'[ "$1 $2" = "pack onnxruntime-web@{web.RUNTIME_VERSION}" ] || exit 3'
        npm.write_text(f"#!/bin/sh\n{checked}\n{script}\n")
        npm.chmod(0o755)
        with pytest.raises(RuntimeError, match=message):
            web.fetch_runtime()
    assert list((tmp_path / "cache" / "atconv").iterdir()) == []


def test_a_folder_of_the_runtime_is_taken_where_it_is_one(run: Path, tmp_path: Path) -> None:
    dist = tmp_path / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    ended = command("export", run, "--format=web", f"--onnxruntime-web={dist.parent}")
    assert ended.code == 2
    assert f"{dist.parent} does not have ort.wasm.bundle.min.mjs and ort-wasm-simd-threaded.wasm" in ended.err
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (dist / name).write_text(name)
    own = {"index.html", "page.js", "prepare.js", "views.js"}
    for folder in (dist, dist.parent):
        files = web.page_files(folder)
        assert all(path.is_file() for path in files)
        assert {path.name for path in files} == own | {path.name for path in dist.iterdir()}
    ended = command("export", run, "--onnxruntime-web=x")
    assert "onnxruntime_web is for web, got --format onnx" in ended.err


@pytest.mark.slow
def test_the_page_of_a_segmenter_shows_what_predict_says(tmp_path: Path) -> None:
    run = shutil.copytree(segmentation_run(), tmp_path / "run")
    with opened_page(run, tmp_path / "page") as page:
        for path in sorted((shared_data() / "images" / "val").iterdir())[:3]:
            page.set_input_files("#file", path)
            await_text(page, "#name", path.name)
            [result] = atconv.load(run)([path])
            assert page.locator("#results .name").all_text_contents() == list(result.shares)
            texts = page.locator("#results .share").all_text_contents()
            assert [float(text.split()[0]) for text in texts] == pytest.approx(
                [100 * share for share in result.shares.values()], abs=0.2
            )
        assert page.problems == []


@pytest.mark.slow
def test_the_page_of_a_detector_shows_what_predict_says(tmp_path: Path) -> None:
    run = detect(tmp_path / "run", architecture="mask_rcnn", epochs=6, lr=4e-3)
    with opened_page(run, tmp_path / "page") as page:
        page.fill("#threshold", "0.15")
        found = 0
        for path in sorted((shared_data() / "images" / "val").iterdir()):
            page.set_input_files("#file", path)
            await_text(page, "#name", path.name)
            [result] = atconv.load(run)([path], threshold=0.15)
            found += len(result.classes)
            assert page.locator("#results .name").all_text_contents() == result.classes
            shown = page.locator("#results .share").all_text_contents()
            assert [float(score) for score in shown] == pytest.approx(result.scores, abs=0.006)
            if not result.classes:
                assert page.inner_text("#status") == "No objects of this score."
        assert found
        assert page.problems == []
