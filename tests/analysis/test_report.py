"""`atconv analyze`: the page and its numbers for real runs, and one clear line for bad input."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from atconv import load
from atconv.analysis.report import _one_of_each, analyze
from atconv.analysis.subject import Subject, _seen_from_the_middle
from atconv.data.sources import DigitsSource
from support.tiny import TINY_ARGS, atconv, train_tiny, trained_run

PICTURES = {
    "kernels.png", "kernels_by_layer.png", "routing.png", "inhibition.png", "shapes.png", "redundancy.png",
    "receptive_field.png", "answers.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans each of three digits, in folders of their classes."""
    folder, source = tmp_path_factory.mktemp("photos"), DigitsSource()
    for label in range(3):
        (folder / str(label)).mkdir()
        for position in [i for i, other in enumerate(source.labels) if other == label][:2]:
            source.read(position, "L").save(folder / str(label) / f"{position}.png")
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs with static convolutions, with attention, and of a ViT."""
    root = tmp_path_factory.mktemp("others")
    vit = {"img_size": 8, "patch_size": 2, "depth": 2, "embed_dim": 16, "num_heads": 2}
    return [
        *(
            train_tiny(root / name, model_args=TINY_ARGS | {"token_mixer": name})
            for name in ("depthwise3", "attention")
        ),
        train_tiny(root / "vit", model="vit_tiny_patch16_224", model_args=vit),
    ]


@pytest.fixture(scope="module")
def page(photos: Path, others: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "analysis"
    console = Console(quiet=True)
    return analyze(trained_run(), [str(photos)], str(out), [str(path) for path in others], console=console)


class Page(HTMLParser):
    """What a page shows and what it asks for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.pictures: list[bytes] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "img":
            kind, data = given["src"].split(",", 1)
            assert kind == "data:image/png;base64"
            assert given["alt"]
            self.pictures.append(base64.b64decode(data))
        self.links.extend(given[name] for name in ("href",) if name in given)
        assert tag not in ("script", "link", "iframe")


def test_the_page_holds_every_picture_and_needs_nothing_else(page: Path) -> None:
    shown = Page(page)
    assert {path.name for path in page.parent.glob("*.png")} == PICTURES
    assert {path.read_bytes() for path in page.parent.glob("*.png")} == set(shown.pictures)
    for data in shown.pictures:
        with Image.open(io.BytesIO(data)) as picture:
            assert 400 < picture.width <= 1200
            assert len(picture.convert("L").getcolors(1 << 24)) > 10
    assert shown.links == [f"#{name}" for name in shown.ids]
    assert "url(" not in page.read_text()


def test_the_numbers_are_those_of_the_layers(page: Path) -> None:
    found = json.loads((page.parent / "analysis.json").read_text())
    assert (found["pictures"], found["classes_from_folders"]) == (6, 6)
    own, static, attention, _ = found["layers"].values()
    assert list(found["layers"]) == ["run", "depthwise3", "attention", "vit"]
    for i, layer in enumerate(own):
        assert (layer["name"], layer["kind"]) == (f"stages.{i}.blocks.0.token_mixer", "ATConv2d")
        assert layer["routing"]["total"] > 1e-6
        assert 0 <= layer["routing"]["share_between"] <= 1
        assert layer["inhibition"] == pytest.approx(0.5, abs=0.05)
        # Inhibition shifts a kernel: its signs change, its kurtosis, taken around the mean, does not.
        assert layer["kernel"]["negative_share"] != layer["uninhibited"]["negative_share"]
        assert layer["kernel"]["kurtosis"] == pytest.approx(layer["uninhibited"]["kurtosis"], rel=1e-3)
    for layer in static:
        assert layer["routing"]["total"] == pytest.approx(0, abs=1e-20)
        assert layer["inhibition"] is None
    for layer in attention:
        assert layer["kernel"] is None
        assert 0 < layer["redundancy"]["effective_rank"] <= 1
    fields = found["receptive_fields"].items()
    spreads = {model: [list(one["spread_in_pixels"]) for one in rows] for model, rows in fields}
    assert spreads["attention"] == [["gradient", "one picture", "attention"]] * 4
    assert spreads["vit"] == [["gradient", "one picture", "attention"]]
    assert spreads["depthwise3"] == [["gradient", "one picture"]] * 4
    assert spreads["run"] == [["gradient", "one picture", "kernels held"]] * 4
    assert [len(values) for values in found["inhibition_by_channel"].values()] == TINY_ARGS["widths"]
    assert [answer["class"] for answer in found["answers"]] == ["0", "0", "1", "1", "2", "2"]
    model, transform, classes = load(trained_run())
    for answer in found["answers"]:
        said = model(transform(Image.open(answer["picture"]))[None]).softmax(1)[0].detach()
        assert answer["said"] == classes[int(said.argmax())]
        assert answer["probability"] == pytest.approx(float(said.max()), abs=1e-5)


def test_one_picture_of_an_unknown_class_is_enough(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    picture = shutil.copy(next(photos.rglob("*.png")), tmp_path / "elsewhere" / "a.png")
    page = analyze(trained_run(), [str(picture)], str(tmp_path / "out"), console=Console(quiet=True))
    found = json.loads((page.parent / "analysis.json").read_text())
    assert (found["pictures"], found["classes_from_folders"]) == (1, 0)
    assert "what the model says" in page.read_text()
    assert not (page.parent / "routing.png").exists()


def test_a_model_without_routing_and_inhibition_is_told_so(photos: Path, tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run", model_args=TINY_ARGS | {"token_mixer": "atconv_neither"})
    page = analyze(run, [str(photos)], str(tmp_path / "out"), console=Console(quiet=True))
    assert "the same for every picture: the model has no routing" in page.read_text()
    assert not (page.parent / "inhibition.png").exists()


def test_pictures_are_spread_and_unreadable_ones_left_out(photos: Path, tmp_path: Path) -> None:
    spoiled = Path(shutil.copytree(photos, tmp_path / "photos"))
    (spoiled / "0" / "bad.png").write_text("text")
    told = io.StringIO()
    page = analyze(trained_run(), [str(photos)], str(tmp_path / "out"), most=3, console=Console(file=told))
    answers = json.loads((page.parent / "analysis.json").read_text())["answers"]
    assert [answer["class"] for answer in answers] == ["0", "1", "2"]
    page = analyze(trained_run(), [str(spoiled)], str(tmp_path / "out"), console=Console(file=told))
    assert json.loads((page.parent / "analysis.json").read_text())["pictures"] == 6
    assert re.search(r"left out: \S+bad.png: not a readable picture", told.getvalue())


def test_classes_come_from_folders_where_the_run_knows_them(photos: Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    subject = Subject(trained_run(), paths, torch.device("cpu"))
    labels, named = subject.labels(["7", "cats", "7", "1", "1", "1"])
    said = subject.probabilities.argmax(1).tolist()
    assert (labels.tolist(), named) == ([7, said[1], 7, 1, 1, 1], 5)
    shown = subject.pictures([0, 1])
    assert [picture.shape for picture in shown] == [(8, 8), (8, 8)]
    transformed = load(trained_run())[1](Image.open(paths[0]))[0]  # gray: mean and deviation 0.5
    assert np.abs(shown[0] - 255 * (0.5 * transformed.numpy() + 0.5)).max() <= 0.51


def test_pictures_of_every_class_are_drawn_and_looked_into(photos: Path) -> None:
    assert _one_of_each(torch.tensor([3, 3, 3, 3, 3, 1, 2, 1])) == [0, 1, 2, 5, 6, 7]
    subject = Subject(trained_run(), sorted(photos.rglob("*.png")), torch.device("cpu"))
    torch.testing.assert_close(subject._some(3), subject.images[[0, 2, 5]])


def test_answers_are_traced_to_the_deepest_map_that_shows_where(tmp_path: Path, photos: Path) -> None:
    paths = sorted(photos.rglob("*.png"))[:2]
    answers, layer = Subject(trained_run(), paths, torch.device("cpu")).answers([1])
    assert (layer, answers[0].where.shape) == ("stages.0", (8, 8))  # of maps 8, 4, 2 and 1
    run = train_tiny(tmp_path / "run", image_size=32)
    assert Subject(run, paths, torch.device("cpu")).answers([0])[1] == "stages.2"  # of maps 32, 16, 8 and 4


def test_rollout_is_seen_from_the_middle() -> None:
    rolled = torch.zeros(2, 12, 12)
    rolled[:, 6, 1] = 1  # of a map of 3 × 4, row 1, column 2 takes all from row 0, column 1
    field = _seen_from_the_middle(rolled, (3, 4), torch.zeros(6, 8))
    expected = torch.zeros(6, 8, dtype=torch.float64)
    expected[:2, 2:4] = 0.25
    torch.testing.assert_close(field, expected)


def test_names_that_mean_something_to_the_plotter_are_taken_as_they_are(tmp_path: Path, photos: Path) -> None:
    run = shutil.copytree(trained_run(), tmp_path / "_a_$_$b")
    page = analyze(run, [str(photos)], beside=[str(trained_run())], console=Console(quiet=True))
    assert page == run / "analysis" / "index.html"


def test_pictures_of_an_earlier_analysis_go(tmp_path: Path, photos: Path) -> None:
    out, console = tmp_path / "out", Console(quiet=True)
    analyze(trained_run(), [str(photos)], str(out), console=console)
    analyze(trained_run(), [str(next(photos.rglob("*.png")))], str(out), console=console)
    assert {path.name for path in out.glob("*.png")} == PICTURES - {"routing.png"}


def test_bad_input_is_one_line(photos: Path, others: list[Path], tmp_path: Path) -> None:
    run, taken = trained_run(), tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    (tmp_path / "bad.png").write_text("text")
    cases = [
        ([others[1], photos], "does not contain ATConv, its token mixers are SelfAttention"),
        ([run, tmp_path / "none"], "no picture at"),
        ([run, tmp_path / "bad.png"], f"none of the 1 pictures could be read: {tmp_path / 'bad.png'}"),
        ([run, photos, "--out", taken], "holds something that is no analysis"),
        ([run, photos, "--out", taken / "mine.txt"], "is a file"),
        ([run, photos, "--beside", run], "a run is named twice"),
        ([run, photos, "--most", "0"], "most must be at least 1, got 0"),
        ([tmp_path / "none", photos], "no such run folder"),
    ]
    for arguments, expected in cases:
        found = atconv("analyze", *arguments)
        assert found.code == 2, found.out
        last = found.err.strip().splitlines()[-1]
        assert last.startswith("atconv analyze: ")
        assert expected in last
        assert "Traceback" not in found.err
    assert {path.name for path in taken.iterdir()} == {"mine.txt"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_every_picture(page: Path, tmp_path: Path) -> None:
    # In a copy, a script at the end writes the widths of the decoded pictures into the title.
    script = "<script>document.title = [...document.images].map(i => i.naturalWidth).join(' ')</script>"
    copy, profile = tmp_path / "page.html", f"--user-data-dir={tmp_path / 'profile'}"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{script}</body>"), encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = ["chromium", *options.split(), profile, "--dump-dom", str(copy)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>([\d ]+)</title>", shown)
    assert title is not None
    widths = [int(width) for width in title[1].split()]
    assert len(widths) == len(PICTURES)
    assert min(widths) > 400
