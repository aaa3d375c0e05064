"""`atconv detect` and `atconv segment`: evaluation, prediction, and what they reject."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from atconv.plots import shorten
from atconv.tasks import load
from atconv.tasks.common import drawing
from atconv.tasks.common.drawing import PlotFiles, class_colors, drawn_size, find_font
from atconv.tasks.detection.plots import draw_detections
from atconv.tasks.segmentation.plots import plot_prediction
from support.tiny import atconv, read_rows
from support.tiny_dense import annotated_folder, detection_run, segmentation_run, shared_data


@pytest.mark.plots
def test_detection_is_evaluated_as_in_training(tmp_path: Path) -> None:
    ended = atconv("detect", "evaluate", detection_run(), shared_data(), "--batch-size=4")
    assert ended.code == 0, ended.err
    assert "box mAP@50" in ended.out
    folder = detection_run() / "evaluation" / "data-val"
    evaluated = json.loads((folder / "metrics.json").read_text())
    trained = json.loads((detection_run() / "metrics.json").read_text())
    assert evaluated["coco"] == trained["coco"]
    assert [row["class"] for row in read_rows(folder / "per_class.csv")] == ["bright", "dark"]
    assert min(Image.open(folder / "predictions.png").size) > 300


def copied(run: Path, to: Path, **changes: Any) -> Path:
    """A copy of a run, with other options in its config.yaml."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints", "evaluation"))
    options = yaml.safe_load((to / "config.yaml").read_text())
    (to / "config.yaml").write_text(yaml.safe_dump(options | changes, sort_keys=False))
    return to


@pytest.mark.parametrize("own", [True, False], ids=["the run's data", "other data"])
@pytest.mark.parametrize("run", [detection_run, segmentation_run])
def test_evaluation_leaves_out_unreadable_images_up_to_the_limit(
    run: Callable[[], Path], own: bool, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shared_data(), data)
    truncated, missing = data / "images" / "val" / "1.png", data / "images" / "val" / "2.png"
    truncated.write_bytes(truncated.read_bytes()[:60])
    missing.unlink()
    options = {"data": str(data)} if own else {}
    predictor = load(copied(run(), tmp_path / "run", max_skipped=0.5, **options))
    metrics = predictor.evaluate(str(data), split="val")
    assert metrics.images == 2
    predictor.save_evaluation(metrics, tmp_path / "out")
    listed = read_rows(tmp_path / "out" / "skipped.csv")
    assert [(row["split"], row["file"]) for row in listed] == [("val", "1.png"), ("val", "2.png")]
    assert all(str(data) in row["reason"] for row in listed)
    strict = load(copied(run(), tmp_path / "strict", max_skipped=0.2, **options))
    with pytest.raises(ValueError, match=r"files are unreadable, more than max_skipped \(20%\) allows"):
        strict.evaluate(str(data), split="val")
    predictor.save_evaluation(predictor.evaluate(str(shared_data())), tmp_path / "out")
    assert not (tmp_path / "out" / "skipped.csv").exists()  # of another evaluation


@pytest.mark.parametrize(
    ("task", "run", "option", "name"),
    [
        ("detect", detection_run, "--bad-annotations=skip", "bad_annotations"),
        ("segment", segmentation_run, "--flip-tta", "flip_tta"),
        ("segment", segmentation_run, "--exif=upright", "exif"),
    ],
)
def test_evaluations_with_other_options_are_not_written_over(
    task: str, run: Callable[[], Path], option: str, name: str, tmp_path: Path
) -> None:
    folder = copied(run(), tmp_path / "run")
    for options in ([], [option], [option]):
        ended = atconv(task, "evaluate", folder, shared_data(), *options)
        assert ended.code == 0, ended.err
    written = sorted((folder / "evaluation").iterdir())
    assert [path.name for path in written] == ["data-val", "data-val-2"]
    values = [json.loads((path / "metrics.json").read_text())[name] for path in written]
    assert values[0] != values[1]


def test_evaluation_takes_annotations_as_the_run_was_configured_to(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", 1, 3)
    content = json.loads((data / "val.json").read_text())
    content["annotations"][0]["bbox"][2] = -1
    (data / "val.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="annotation 1: its box"):
        load(detection_run()).evaluate(str(data))
    predictor = load(copied(detection_run(), tmp_path / "run", bad_annotations="skip"))
    assert predictor.evaluate(str(data)).bad_annotations == "skip"
    with pytest.raises(ValueError, match="annotation 1: its box"):
        predictor.evaluate(str(data), bad_annotations="reject")


@pytest.mark.parametrize("run", [detection_run, segmentation_run])
def test_predictions_are_saved_when_asked_for(run: Callable[[], Path], tmp_path: Path) -> None:
    predictor, images = load(run()), shared_data() / "images" / "val"
    (tmp_path / "bad.png").write_text("text")
    files = [images / "0.png", tmp_path / "bad.png", images / "1.png"]
    saved = predictor.save_predictions(predictor.predict(files), str(tmp_path / "drawn"))
    assert sorted(file.name for file in (tmp_path / "drawn").glob("*.png")) == ["0.png", "1.png"]
    assert [result.image for result in saved] == [str(file) for file in files]
    assert [result.plot and Path(result.plot).name for result in saved] == ["0.png", None, "1.png"]
    with pytest.raises(ValueError, match="is no file: only results of files are drawn"):
        predictor.save_predictions(predictor(np.zeros((40, 40), np.uint8)), tmp_path / "drawn")


def test_colors_differ_and_names_do_too() -> None:
    assert len(set(class_colors(80))) == 80
    files = PlotFiles(Path("out"))
    names = [str(files.add(Path(image))) for image in ("a/x.jpg", "b/x.png", "x-2.png")]
    assert names == ["out/x.png", "out/x-2.png", "out/x-2-2.png"]
    with pytest.raises(ValueError, match=r"b/x\.png is one of the images and would be written over"):
        PlotFiles(Path("a/../b")).add(Path("b/x.png"))
    assert drawn_size((96, 128)) == (384, 512)
    assert drawn_size((600, 800)) == (600, 800)
    assert drawn_size((3000, 4000), 1200) == (900, 1200)
    assert drawn_size((1, 20000), 1200) == (1, 1200)


DETECTION, SEGMENTATION = "DETECTION", "SEGMENTATION"  # stand for runs


def rejected(*arguments: str | Path) -> str:
    ended = atconv(*arguments)
    assert ended.code == 2, (ended.code, ended.err[-500:])
    assert ended.err.count("\n") == 1, ended.err
    return ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect"], "no command given; there are train, evaluate, predict"),
        (["segment", "fly"], "no command 'fly'; there are train, evaluate, predict"),
        (["detect", "train"], "DATA is missing: give a folder with images and boxes"),
        (["detect", "train", "none"], "does not exist: give a folder"),
        (["segment", "train", "none"], "does not exist: give a folder with images/, masks/ and classes.txt"),
        (["detect", "train", "none", "--model=attnet_t9"], "timm knows no model 'attnet_t9'"),
        (["detect", "train", "none", "--min-size=[]"], "min_size must be one size in pixels"),
        (["detect", "train", "none", "--detector-args={no_such: 1}"], "detector_args do not fit"),
        (["detect", "train", "none", "--detector-args={channels: 1}"], "give --channels instead"),
        (["detect", "train", "none", '--detector-args={"backbone":"x"}'], "give --model instead"),
        (["detect", "train", "none", "--detector-args={num_classes: 3}"], "the data say how many"),
        (["segment", "train", "none", "--segmenter-args={in_chans: 1}"], "give --in-chans instead"),
        (  # options win wherever they stand
            [
                "detect",
                "train",
                "x",
                '--detector-args={"no":1}',
                "--architecture=retinanet",
                "--config=small",
            ],
            "detector_args do not fit retinanet",
        ),
        (
            [
                "detect",
                "train",
                "x",
                "--config",
                "small",
                "--architecture=retinanet",
                '--detector-args={"no":1}',
            ],
            "detector_args do not fit retinanet",
        ),
        (
            ["detect", "train", "none", "--model=swin_tiny_patch4_window7_224"],
            "does not take images of 160 × 352 pixels",
        ),
        (["segment", "train", "none", "--model=coatnet_nano_rw_224"], "does not take images of 160 × 352"),
        (["detect", "evaluate", DETECTION, "none", "--batch-size=0"], "batch_size must be at least 1, got 0"),
        (
            ["segment", "evaluate", SEGMENTATION, "none", "--batch-size=-1"],
            "batch_size must be at least 1, got -1",
        ),
        (["detect", "train", "none", "--checkpoint=none.pth"], "none.pth"),
        (["segment", "train", "none", "--crop=[100, 100]"], "multiples of 32"),
        (["segment", "train", "none", "--model-args={stem_stride: 2}"], "Leave stem_stride at 4"),
        (["segment", "train", "none", "--in-chans=4"], "in_chans"),
        (["segment", "train", "none", "--layer-decay=0.7"], "layer_decay is for classifiers"),
        (["segment", "train", "none", "--architecture=upernet", "--batch-size=1"], "batch_size must be at"),
        (
            ["segment", "train", "--config=none"],
            "no recipe 'none': give a YAML file, or one of small",
        ),
        (["detect", "evaluate", "none", "none"], "no such run folder"),
        (["segment", "predict", "none", "none.png"], "no image at 'none.png'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = {DETECTION: detection_run, SEGMENTATION: segmentation_run}
    assert message in rejected(*(runs[a]() if a in runs else a for a in arguments))
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_boxes_is_rejected(tmp_path: Path, split: str) -> None:
    data = annotated_folder(tmp_path / "data", 3, 1)
    content = json.loads((data / f"{split}.json").read_text())
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    (data / f"{split}.json").write_text(json.dumps(content))
    assert f"the {split} split has no boxes of single objects" in rejected(
        "detect", "train", data, "--in-chans=1"
    )


def test_detection_does_not_depend_on_batches(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", 2, 9)  # of three shapes
    one, four = (load(detection_run()).evaluate(str(data), batch_size=size) for size in (1, 4))
    assert one.coco == pytest.approx(four.coco, abs=0.02, nan_ok=True)


def test_a_wrong_annotation_is_one_line(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", 3, 1)
    content = json.loads((data / "train.json").read_text())
    content["annotations"][4]["bbox"][2] = -1
    (data / "train.json").write_text(json.dumps(content))
    assert "train.json: annotation 5: its box" in rejected(
        "detect", "train", data, f"--out={tmp_path / 'run'}"
    )
    assert not (tmp_path / "run").exists()
    assert "has no test split, only train, val" in rejected(
        "segment", "evaluate", segmentation_run(), data, "--split=test"
    )


def test_another_tasks_run_is_rejected() -> None:
    assert "is a segmentation run, not a detection run: use atconv segment evaluate" in rejected(
        "detect", "evaluate", segmentation_run(), shared_data()
    )
    assert "is a detection run, not a segmentation run: use atconv detect evaluate" in rejected(
        "segment", "evaluate", detection_run(), shared_data()
    )


def test_classes_that_the_run_does_not_know_are_rejected(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", 2, 1)
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        content["categories"][0]["name"] = "cat"
        (data / f"{split}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its categories cat are not among the classes bright, dark"):
        load(detection_run()).evaluate(str(data))


def plotted_colors(image: Image.Image, mask: torch.Tensor, classes: list[str], path: Path) -> np.ndarray:
    plot_prediction(image, mask, classes, path)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_legends_have_the_colors_of_the_plot(tmp_path: Path) -> None:
    """On a white image, a class and its patch in the legend are of one color."""
    image, mask = Image.new("RGB", (480, 480), "white"), torch.zeros(480, 480, dtype=torch.uint8)
    drawn = plotted_colors(image, mask, ["cat", "dog"], tmp_path / "drawn.png")
    height, width = drawn.shape[:2]
    expected = drawn[height // 2, 3 * width // 4]
    assert (expected < 255).any()
    assert (abs(drawn[500:] - expected).max(2) <= 2).sum() > 50


def test_plots_of_large_photos_are_of_a_size_that_is_readable(tmp_path: Path) -> None:
    sizes = []
    for width in (1200, 4800):
        image, mask = Image.new("RGB", (width, width // 4)), torch.zeros(width // 4, width).byte()
        sizes.append(plotted_colors(image, mask, ["cat"], tmp_path / "drawn.png").shape)
    assert sizes[0] == sizes[1]


def test_names_of_every_kind_are_drawn_without_a_warning(tmp_path: Path) -> None:
    classes = ["猫と犬", "bad\x1b[31m\nname", "caf\udce9", "$x_1", "a" * 300]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mask = torch.arange(5, dtype=torch.uint8).repeat_interleave(20)[:, None].expand(-1, 100)
        plotted_colors(Image.new("RGB", (100, 100)), mask.contiguous(), classes, tmp_path / "drawn.png")
        boxes = torch.tensor([[10.0, 20.0, 90.0, 80.0]]).repeat(5, 1)
        drawn = draw_detections(
            torch.zeros(3, 100, 100), {"boxes": boxes, "labels": torch.arange(1, 6)}, classes
        )
    assert drawn.any()
    assert shorten("bad\x1b[31m\nname") == r"bad\x1b[31m\nname"
    assert shorten("a" * 300) == "a" * 17 + "…"


def test_letters_are_drawn_in_a_font_that_has_them() -> None:
    first, second = "first.ttf", "second.ttf"
    letters = {first: "cat", second: "cat猫"}

    def font(path: str) -> Any:
        return SimpleNamespace(get_charmap=lambda: {ord(letter): 1 for letter in letters[path]})

    with (
        mock.patch.multiple(drawing, findfont=lambda name: name, get_font=font),
        mock.patch.dict(drawing.rcParams, {"font.family": [first, second]}),
    ):
        assert find_font(["cat"]) == first
        assert find_font(["cat", "猫"]) == second
        assert find_font(["κ"]) == first  # nothing has it
