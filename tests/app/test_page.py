"""The page in a browser: what people see."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import atconv
from support.tiny_app import MEGABYTES

PATIENCE = 20_000  # milliseconds
WIDTH = "image => image.decode().then(() => image.naturalWidth)"


@pytest.fixture(scope="module")
def requests() -> list[str]:
    return []


@pytest.fixture(scope="module")
def opened(server: Any, chromium: Any, requests: list[str]) -> Iterator[Any]:
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(PATIENCE)
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(server.local_url)
    tab.locator(".run").first.wait_for()
    yield tab
    tab.close()


@pytest.fixture
def tab(opened: Any) -> Any:
    opened.get_by_role("tab", name="Images").click()
    return opened


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of a handwritten digit."""
    file = tmp_path_factory.mktemp("images") / "scan.png"
    Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).save(file)
    return file


def upload(tab: Any, file: Path) -> None:
    """Choose a file, in place of the image that is there."""
    remove = tab.get_by_role("button", name="Remove Image").first
    if remove.is_visible():
        remove.click()
    tab.set_input_files("input[type=file]", file)


def note(tab: Any, text: str) -> str:
    """The line below the image, once it holds a text."""
    line = tab.locator(".note").filter(has_text=text).first
    line.wait_for()
    return str(line.inner_text())


def panel(tab: Any, name: str) -> Any:
    heading = tab.get_by_role("heading", name=name, exact=True, include_hidden=True)
    return heading.locator("xpath=ancestor::div[contains(@class, 'column')][1]")


def test_an_image_goes_through_all_runs(tab: Any, digit: Path, runs: dict[str, Path]) -> None:
    upload(tab, digit)
    times = note(tab, "boxes:")
    assert re.fullmatch(r"digits: [\d.]+ s, digits <b>again: [\d.]+ s, boxes: .*, masks: [\d.]+ s", times)
    [result] = atconv.load(runs["digits"])(digit, top=1)
    for name in ("digits", "digits <b>again"):  # names are text, not HTML
        shown = panel(tab, name)
        assert shown.locator("h2[data-testid=label-output-value]").inner_text() == result.classes[0]
        assert f"{100 * result.probabilities[0]:.0f}%" in shown.inner_text()
    assert "faster_rcnn on attnet_xxs" in panel(tab, "boxes").inner_text()
    assert panel(tab, "boxes").locator("img").evaluate(WIDTH) == 480
    assert panel(tab, "boxes").locator("table").first.is_visible()
    assert panel(tab, "masks").locator("img").evaluate(WIDTH) > 480
    assert "ground" in panel(tab, "masks").inner_text()
    assert "mIoU" in panel(tab, "masks").inner_text()


def test_a_prediction_is_explained(tab: Any, digit: Path) -> None:
    upload(tab, digit)
    tab.get_by_label("Explain").check()
    plots = panel(tab, "digits").locator("img")
    plots.nth(1).wait_for()
    assert plots.count() == 2  # support and kernels
    assert min(plots.nth(i).evaluate(WIDTH) for i in (0, 1)) > 350
    tab.get_by_label("Explain").uncheck()
    plots.first.wait_for(state="hidden")


def test_examples_are_validation_images(tab: Any) -> None:
    examples = tab.locator(".gallery-item")
    assert examples.count() == 4
    examples.last.click()
    assert "s" in note(tab, "masks:")


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("text.png", b"<script>alert(1)</script>", "text.png: not a readable image (not in an image format)"),
        ("page.svg", b"<svg onload='alert(1)'/>", "page.svg: not a readable image"),
        ("cut.png", png(64, 64)[:-30], "cut.png: not a readable image"),
        ("large.png", png(3000, 1000), "large.png: 3000 × 1000 pixels are 3 megapixels; up to 2 are taken"),
    ],
    ids=["text", "svg", "cut", "large"],
)
def test_a_file_that_is_no_honest_image_gets_one_line(
    tab: Any, tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    upload(tab, tmp_path / name)
    line = note(tab, expected)
    assert "\n" not in line
    assert "/" not in line  # no folder of the machine
    assert tab.locator(".note.error").is_visible()
    assert "%" not in panel(tab, "digits").locator("[data-testid=label]").inner_text()


def test_a_file_that_is_too_large_is_refused(tab: Any, tmp_path: Path) -> None:
    file = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(file)
    assert file.stat().st_size > MEGABYTES * 2**20
    upload(tab, file)
    tab.get_by_text(re.compile("maximum allowed size")).first.wait_for()


def test_images_are_generated(tab: Any) -> None:
    tab.get_by_role("tab", name="Generate").click()
    tab.get_by_role("button", name="Generate", exact=True).click()
    images = panel(tab, "new digits").locator("img")
    images.nth(9).wait_for()
    assert images.count() == 10  # one of each class
    assert images.first.evaluate(WIDTH) == 256


def test_nothing_is_loaded_from_elsewhere(tab: Any, requests: list[str], server: Any) -> None:
    hosts = {urlsplit(url).netloc for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(server.local_url).netloc}


@pytest.mark.parametrize("width", [390, 900, 1280])
def test_nothing_is_wider_than_the_window(tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_answers_come_before_the_examples(tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 844})
    image, last, examples = (
        where.bounding_box() for where in (tab.locator(".upload"), panel(tab, "masks"), tab.locator(".more"))
    )
    if width == 390:
        assert image["y"] + image["height"] <= last["y"]
        assert last["y"] + last["height"] <= examples["y"]
    else:
        assert image["x"] == examples["x"] < last["x"]
        assert image["y"] + image["height"] <= examples["y"] < last["y"] + last["height"]
