"""`atconv analyze`: the page and its numbers for real runs, and one clear line for bad input."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from atconv import load
from atconv.analysis import explain, explanation_layer, image_plots, plots
from atconv.analysis.probe import _center_field
from atconv.data.sources.digits import DigitsSource
from atconv.tasks.classification.analyze import Probe, _first_of_each_class, analyze
from support.browser import browser
from support.tiny import TINY_ARGS, atconv, train_tiny, trained_run

PLOTS = {
    "kernels.png", "kernels_by_layer.png", "routing.png", "inhibition.png", "shapes.png", "redundancy.png",
    "receptive_field.png", "explanations.png",
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
def compared(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs with static convolutions, with attention, and of a ViT."""
    root = tmp_path_factory.mktemp("compared")
    vit = {"img_size": 8, "patch_size": 2, "depth": 2, "embed_dim": 16, "num_heads": 2}
    return [
        *(
            train_tiny(root / name, model_args=TINY_ARGS | {"token_mixer": name})
            for name in ("depthwise", "attention")
        ),
        train_tiny(root / "vit", model="vit_tiny_patch16_224", model_args=vit),
    ]


@pytest.fixture(scope="module")
def page(photos: Path, compared: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "analysis"
    return analyze(trained_run(), [str(photos)], [str(path) for path in compared], str(out))


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn, which takes most of an analysis: for tests of what else it says."""
    for module in (plots, image_plots):
        for name in (name for name in vars(module) if name.startswith("plot_")):
            monkeypatch.setattr(module, name, lambda *arguments, **options: Figure())


class Page(HTMLParser):
    """The images of a page and its links."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[bytes] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "img":
            kind, data = attributes["src"].split(",", 1)
            assert kind == "data:image/png;base64"
            assert attributes["alt"]
            self.images.append(base64.b64decode(data))
        self.links.extend(attributes[name] for name in ("href",) if name in attributes)
        assert tag not in ("script", "link", "iframe")


def test_the_page_contains_every_plot_and_needs_nothing_else(page: Path) -> None:
    shown = Page(page)
    assert {path.name for path in page.parent.glob("*.png")} == PLOTS
    assert {path.read_bytes() for path in page.parent.glob("*.png")} == set(shown.images)
    for data in shown.images:
        with Image.open(io.BytesIO(data)) as plot:
            assert 400 < plot.width <= 1200
            assert len(plot.convert("L").getcolors(1 << 24)) > 10
    assert shown.links == [f"#{name}" for name in shown.ids]
    assert "url(" not in page.read_text()


def test_the_numbers_are_those_of_the_layers(page: Path) -> None:
    analysis = json.loads((page.parent / "analysis.json").read_text())
    assert (analysis["images"], analysis["classes_from_folders"]) == (6, 6)
    atconv_layers, static, attention, _ = analysis["layers"].values()
    assert list(analysis["layers"]) == ["run", "depthwise", "attention", "vit"]
    for i, layer in enumerate(atconv_layers):
        assert (layer["name"], layer["kind"]) == (f"stages.{i}.blocks.0.token_mixer", "ATConv2d")
        assert layer["routing"]["total"] > 1e-6
        assert 0 <= layer["routing"]["share_between"] <= 1
        assert layer["inhibition"] == pytest.approx(0.5, abs=0.05)
        # Inhibition shifts a kernel: its entropy changes, its kurtosis, centered on the mean, does not.
        assert layer["kernel"]["entropy"] != layer["kernel_before_inhibition"]["entropy"]
        assert layer["kernel"]["kurtosis"] == pytest.approx(
            layer["kernel_before_inhibition"]["kurtosis"], rel=1e-3
        )
    shares = [
        [layer[name]["negative_share"] for layer in atconv_layers]
        for name in ("kernel", "kernel_before_inhibition")
    ]
    assert shares[0] != shares[1]
    for layer in static:
        assert layer["routing"]["total"] == pytest.approx(0, abs=1e-20)
        assert layer["inhibition"] is None
    for layer in attention:
        assert layer["kernel"] is None
        assert 0 < layer["redundancy"]["effective_rank"] <= 1
    fields = analysis["receptive_fields"].items()
    views = {model: [list(field["radius_in_pixels"]) for field in stages] for model, stages in fields}
    assert views["attention"] == [["gradient", "one image", "attention"]] * 4
    assert views["vit"] == [["gradient", "one image", "attention"]]
    assert views["depthwise"] == [["gradient", "one image"]] * 4
    assert views["run"] == [["gradient", "one image", "fixed kernels"]] * 4
    assert [len(values) for values in analysis["inhibition_by_channel"].values()] == TINY_ARGS["dims"]
    assert [explanation["class"] for explanation in analysis["explanations"]] == [
        "0",
        "0",
        "1",
        "1",
        "2",
        "2",
    ]
    predictor = load(trained_run())
    model, transform, classes = predictor.model, predictor.transform, predictor.classes
    for explanation in analysis["explanations"]:
        probabilities = model(transform(Image.open(explanation["image"]))[None]).softmax(1)[0].detach()
        assert explanation["predicted"] == classes[int(probabilities.argmax())]
        assert explanation["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)


@pytest.mark.usefixtures("empty_figures")
def test_one_image_of_an_unknown_class_is_enough(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    image = shutil.copy(next(photos.rglob("*.png")), tmp_path / "elsewhere" / "a.png")
    page = analyze(trained_run(), [str(image)], out=str(tmp_path / "out"))
    analysis = json.loads((page.parent / "analysis.json").read_text())
    assert (analysis["images"], analysis["classes_from_folders"]) == (1, 0)
    assert "the model's predictions" in html.unescape(page.read_text())
    assert not (page.parent / "routing.png").exists()


@pytest.mark.usefixtures("empty_figures")
def test_the_page_says_that_a_model_has_no_routing(photos: Path, tmp_path: Path) -> None:
    run = train_tiny(
        tmp_path / "run", model_args=TINY_ARGS | {"mixer_args": {"routing": False, "inhibition": False}}
    )
    page = analyze(run, [str(photos)], out=str(tmp_path / "out"))
    assert "the same for every image: the model has no routing" in page.read_text()
    assert not (page.parent / "inhibition.png").exists()


@pytest.mark.usefixtures("empty_figures")
def test_images_are_evenly_spaced_and_unreadable_ones_skipped(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled = Path(shutil.copytree(photos, tmp_path / "photos"))
    (spoiled / "0" / "bad.png").write_text("text")
    page = analyze(trained_run(), [str(photos)], out=str(tmp_path / "out"), max_images=3)
    explanations = json.loads((page.parent / "analysis.json").read_text())["explanations"]
    assert [explanation["class"] for explanation in explanations] == ["0", "1", "2"]
    page = analyze(trained_run(), [str(spoiled)], out=str(tmp_path / "out"))
    assert json.loads((page.parent / "analysis.json").read_text())["images"] == 6
    assert re.search(r"skipped: \S+bad.png: not a readable image", caplog.text)


def test_all_of_ten_images_are_used_and_shown(tmp_path: Path) -> None:
    for position in range(10):
        DigitsSource().read(position, "L").save(tmp_path / f"{position}.png")
    page = analyze(trained_run(), [str(tmp_path)], out=str(tmp_path / "out"))
    analysis = json.loads((page.parent / "analysis.json").read_text())
    assert (analysis["images"], len(analysis["explanations"])) == (10, 10)
    for path in page.parent.glob("*.png"):
        with Image.open(path) as plot:
            assert plot.width <= 1200


def test_classes_come_from_folders_where_the_run_knows_them(photos: Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    probe = Probe.open(trained_run(), paths, "cpu")
    labels, from_folders = probe.labels(["7", "cats", "7", "1", "1", "1"])
    with torch.no_grad():
        predicted = probe.predictor.model(probe.images).argmax(1).tolist()
    assert (labels.tolist(), from_folders) == ([7, predicted[1], 7, 1, 1, 1], 5)
    shown = probe.pixels([0, 1])
    assert [image.shape for image in shown] == [(8, 8), (8, 8)]
    transformed = load(trained_run()).transform(Image.open(paths[0]))[0]  # gray: mean and deviation 0.5
    assert np.abs(shown[0] - 255 * (0.5 * transformed.numpy() + 0.5)).max() <= 0.51


def test_images_of_every_class_are_shown() -> None:
    assert _first_of_each_class(torch.tensor([3] * 9 + [1, 2, 1])) == [0, 1, 2, 3, 4, 5, 6, 9, 10, 11]


def test_predictions_are_traced_to_the_deepest_map_that_is_fine_enough(tmp_path: Path, photos: Path) -> None:
    paths = sorted(photos.rglob("*.png"))[:2]
    probe = Probe.open(trained_run(), paths, "cpu")
    model, classes = probe.predictor.model, probe.predictor.classes
    layer = explanation_layer(model, probe.images)
    assert layer == "stages.0"  # of maps 8, 4, 2 and 1
    assert explain(model, probe.images[1:], classes, layer)[0].map.shape == (8, 8)
    large = Probe.open(train_tiny(tmp_path / "run", image_size=32), paths, "cpu")
    assert explanation_layer(large.predictor.model, large.images) == "stages.2"  # of maps 32, 16, 8 and 4


def test_rollout_is_shown_for_the_center() -> None:
    rolled = torch.zeros(2, 12, 12)
    rolled[:, 6, 1] = 1  # on a map of 3 × 4, row 1, column 2 attends only to row 0, column 1
    field = _center_field(rolled, (3, 4), (6, 8))
    expected = torch.zeros(6, 8, dtype=torch.float64)
    expected[:2, 2:4] = 0.25
    torch.testing.assert_close(field, expected)


def test_run_names_with_a_meaning_for_matplotlib_are_shown_as_they_are(tmp_path: Path, photos: Path) -> None:
    run = shutil.copytree(trained_run(), tmp_path / "_a_$_$b")
    page = analyze(run, [str(photos)], compare=[str(trained_run())])
    assert page == run / "analysis" / "index.html"


@pytest.mark.usefixtures("empty_figures")
def test_plots_of_an_earlier_analysis_are_removed(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    analyze(trained_run(), [str(photos)], out=str(out))
    analyze(trained_run(), [str(next(photos.rglob("*.png")))], out=str(out))
    assert {path.name for path in out.glob("*.png")} == PLOTS - {"routing.png"}


def test_bad_input_is_one_line(photos: Path, compared: list[Path], tmp_path: Path) -> None:
    run, taken = trained_run(), tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    (tmp_path / "bad.png").write_text("text")
    cases = [
        ([compared[1], photos], "does not contain ATConv, its token mixers are SelfAttention"),
        ([run, tmp_path / "none"], "no image at"),
        ([run, tmp_path / "bad.png"], f"none of the 1 images could be read: {tmp_path / 'bad.png'}"),
        ([run, photos, "--out", taken], "holds something that is no analysis"),
        ([run, photos, "--out", taken / "mine.txt"], "is a file"),
        ([run, photos, "--compare", run], "a run is named twice"),
        ([run, photos, "--max-images", "0"], "max_images must be at least 1, got 0"),
        ([tmp_path / "none", photos], "no such run folder"),
    ]
    for arguments, expected in cases:
        ended = atconv("analyze", *arguments)
        assert ended.code == 2, ended.out
        last = ended.err.strip().splitlines()[-1]
        assert last.startswith("atconv analyze: ")
        assert expected in last
        assert "Traceback" not in ended.err
    assert {path.name for path in taken.iterdir()} == {"mine.txt"}


def test_a_browser_shows_every_plot(page: Path) -> None:
    with browser() as chromium:
        tab = chromium.new_page()
        tab.goto(page.as_uri())
        widths = tab.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == len(PLOTS)
    assert min(widths) > 400
