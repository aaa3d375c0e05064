"""`atconv data check`: what it says, the files that it writes, and one line for bad input."""

from __future__ import annotations

import csv
import hashlib
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from atconv.data.checks.check import DataReport
from atconv.data.checks.images import Finding, inspect_images
from atconv.data.checks.page import write_report
from atconv.data.sources.digits import DigitsSource
from atconv.data.sources.folders import FolderSource
from support.browser import browser
from support.tiny import atconv, trained_run

FLIPPED = "3/<b>&\"'.png"


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in folders of their classes, a zero among the threes; a copy and a damaged file."""
    folder, source = tmp_path_factory.mktemp("data") / "scans", DigitsSource()
    for split, start in (("train", 0), ("val", 15)):
        for label in (0, 1, 3):
            (folder / split / str(label)).mkdir(parents=True)
            for i in np.flatnonzero(source.labels == label)[start : start + 15]:
                source.read(int(i), "L").save(folder / split / str(label) / f"{i}.png")
    zero = min((folder / "train" / "0").iterdir())
    shutil.copy(zero, folder / "val" / "0" / "copy.png")
    max((folder / "train" / "0").iterdir()).rename(folder / "train" / FLIPPED)
    (folder / "val" / "1" / "damaged.png").write_bytes(zero.read_bytes()[:60])
    return folder


def digest(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(str(f).encode() + f.read_bytes() for f in files)).hexdigest()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "findings.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_check_with_a_run(scans: Path, tmp_path: Path) -> None:
    before = digest(scans)
    out = tmp_path / "look"
    ended = atconv("data", "check", scans, "--model", trained_run(), "--out", out)
    assert ended.code == 0, ended.err
    assert digest(scans) == before
    assert sorted(file.name for file in out.iterdir()) == ["check.json", "findings.csv", "index.html"]
    assert "unreadable: 1, val/1/damaged.png" in ended.out
    wrong = [(row["split"], row["file"]) for row in rows(out) if row["finding"] == "likely wrong label"]
    assert wrong[0] == ("train", FLIPPED)
    assert [row["finding"] for row in rows(out)].count("copy in another split") == 1
    with browser() as chromium:
        page = chromium.new_page()
        page.goto(f"file://{out / 'index.html'}")
        caption = page.get_by_text(f"train/{FLIPPED}: labeled 3")
        assert caption.is_visible()
        figure = caption.locator("..")
        assert figure.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)") == [128, 128]
        page.close()
    # Again, without the faults and without the model: nothing of the first look is left.
    assert (
        "wrong labels were not looked for" in atconv("data", "check", scans / "val" / "0", "--out", out).out
    )
    assert "likely wrong label" not in (out / "index.html").read_text()


def test_check_with_a_model_of_timm(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "test_resnet"
    model = timm.create_model(name)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", name, "--weights", tmp_path / "weights.safetensors", "--batch-size=16"]
    ended = atconv("data", "check", scans, *arguments)
    assert ended.code == 0, ended.err
    assert len(rows(tmp_path / "runs" / "check-scans")) >= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no_such_model"], "timm knows no model 'no_such_model'"),
        (["--model", "test_resnet.r160_in1k"], "cannot be loaded"),
        (["--model", "resnet18", "--weights", "no.pth"], "resnet18 cannot be loaded: no such file: no.pth"),
        (["--model", "RUN", "--weights", "w.pth"], "is a run, which has weights"),
        (["--out", "DATA/look"], "lies in DATA"),
        (["--out", "OTHER"], "holds something that is no check"),
        (["--mask-values", "[1, 1]"], "mask_values must be different numbers"),
        (["--min-similarity", "2"], "min_similarity"),
    ],
)
def test_bad_input(scans: Path, tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    words = {"RUN": str(trained_run()), "OTHER": str(tmp_path / "other"), "DATA/look": str(scans / "look")}
    out = [] if "--out" in options else ["--out", tmp_path / "out"]
    ended = atconv("data", "check", scans, *(words.get(each, each) for each in options), *out)
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    for name, message in (("none", "does not exist"), ("weights.pth", "a file of weights: give a folder of")):
        ended = atconv("data", "check", tmp_path / name)
        assert ended.code == 2
        assert message in ended.err


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("page") / "a"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 10 + i)).save(folder / f"{i}.png")
    return inspect_images("train", FolderSource(folder.parent))[0]


@settings(max_examples=15, deadline=None)
@given(
    name=st.text(alphabet=st.sampled_from("<>&\"'/ab\n\u202e\x00é"), min_size=1), detail=st.text(max_size=20)
)
def test_names_are_text_on_the_page(
    facts: Any, tmp_path_factory: pytest.TempPathFactory, name: str, detail: str
) -> None:
    folder = tmp_path_factory.mktemp("named")
    pages = []
    for data, file, text in ((name, name, detail), ("x", "x", "x")):
        finding = Finding("copy", "train", file, text, 0, ("train", 1))
        pages.append(Page(write_report(DataReport(data, {"train": facts}, {}, [finding]), folder)))
    assert pages[0].tags == pages[1].tags
    assert "\u202e" not in pages[0].text


def test_thumbnails_are_bounded_and_boxes_are_drawn(facts: Any, tmp_path: Path) -> None:
    many = [Finding(kind, "train", str(i), "", 0) for kind in ("copy", "tiny box") for i in range(500)]
    page = Page(write_report(DataReport("x", {"train": facts}, {}, many), tmp_path))
    assert len(page.images) == 200
    assert page.text.count("400 more in findings.csv.") == 2
    assert len(rows(tmp_path)) == 1000
    boxed = [Finding("tiny box", "train", "0", "", 0, None, ((0.4, 0.4, 0.5, 0.5),))]
    drawn = Page(write_report(DataReport("x", {"train": facts}, {}, boxed), tmp_path))
    assert drawn.images[0]["src"] != page.images[0]["src"]
