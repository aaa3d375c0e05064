from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from atconv.data.sources.digits import DigitsSource
from atconv.tasks.classification import plots
from atconv.tasks.classification.metrics import (
    compute_metrics,
    expected_calibration_error,
)
from atconv.tasks.common.intervals import wilson_interval
from support.tiny import Finished, atconv, image_folder, read_rows, train_tiny, trained_run

# Six images, six classes: right, right, wrong (second), wrong (last), right, wrong (second).
PROBABILITIES = np.array(
    [
        [0.90, 0.02, 0.02, 0.02, 0.02, 0.02],
        [0.05, 0.75, 0.05, 0.05, 0.05, 0.05],
        [0.60, 0.00, 0.30, 0.04, 0.03, 0.03],
        [0.50, 0.10, 0.10, 0.05, 0.15, 0.10],
        [0.05, 0.05, 0.05, 0.05, 0.75, 0.05],
        [0.00, 0.00, 0.04, 0.00, 0.52, 0.44],
    ],
    dtype=np.float32,
)
LABELS = np.array([0, 1, 2, 3, 4, 5])
CLASSES = list("abcdef")


def test_accuracy_counts_the_first_and_the_first_five() -> None:
    metrics = compute_metrics(PROBABILITIES, LABELS, CLASSES, 10.0)
    assert metrics.images == 6
    assert metrics.top1 == pytest.approx(100 * 3 / 6)
    assert metrics.top5 == pytest.approx(100 * 5 / 6)
    assert metrics.images_per_second == 10.0


def test_balanced_accuracy_and_macro_f1_count_classes_alike() -> None:
    # A model that says "a" to everything: right for 8 of 10 images, for one of the two classes that have any.
    probabilities = np.tile(np.array([[0.6, 0.3, 0.1]], dtype=np.float32), (10, 1))
    metrics = compute_metrics(probabilities, np.array([0] * 8 + [1] * 2), list("abc"), 1.0)
    assert metrics.top1 == pytest.approx(80)
    assert metrics.balanced_accuracy == pytest.approx(50)
    assert metrics.macro_f1 == pytest.approx(100 * (2 * 8 / 18) / 2)
    summary = str(metrics.tables("t")[0])
    assert re.search(r"balanced accuracy\s+50\.00 %", summary)
    assert re.search(r"macro F1\s+44\.44 %", summary)
    assert {"balanced_accuracy", "macro_f1"} <= set(metrics.to_dict())


@pytest.mark.plots
@pytest.mark.parametrize("wrong", [0, 1, 7])
def test_titles_fit_and_mistakes_are_named(wrong: int, tmp_path: Path) -> None:
    probabilities = np.tile(np.array([[0.9, 0.1]], dtype=np.float32), (1797, 1))
    labels = np.array([1] * wrong + [0] * (1797 - wrong))
    source = mock.Mock()
    source.read.return_value = Image.new("RGB", (8, 8))
    source.name.side_effect = lambda position: f"photos/cat/scan-{position}.png"
    metrics = compute_metrics(probabilities, labels, ["cat", "dog"], 1.0, source=source)
    figures: list[Figure] = []
    with mock.patch.object(plots, "save", lambda figure, path: figures.append(figure)):
        plots.plot_confusion_matrix(metrics, tmp_path / "confusion.png")
        plots.plot_mistakes(metrics, list(range(wrong)), "RGB", tmp_path / "mistakes.png")
    for figure in figures:
        figure.draw_without_rendering()
        texts = [figure._suptitle, *(axis.title for axis in figure.axes)]  # type: ignore[attr-defined]
        for text in texts:
            extent = text.get_window_extent()
            assert extent.x0 >= 0
            assert extent.x1 <= figure.bbox.width
    titles = [axis.get_title() for axis in figures[1].axes]
    assert [title.partition("\n")[0] for title in titles if title] == [f"scan-{i}.png" for i in range(wrong)]
    for figure in figures:
        plots.plt.close(figure)


@pytest.mark.plots
@pytest.mark.parametrize(
    "classes", [[f"class {i}" for i in range(40)], [f"a very long name, the {i}th" for i in range(6)]]
)
def test_names_of_classes_and_mistakes_do_not_overlap(classes: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % len(classes)
    probabilities = rng.random((200, len(classes)), dtype=np.float32)
    source = mock.Mock()
    source.read.return_value = Image.new("RGB", (8, 8))
    source.name.return_value = "photos/a-very-long-name-from-a-camera-2026-11-27-0001.jpg"
    metrics = compute_metrics(probabilities, labels, classes, 1.0, source=source)
    figures: list[Figure] = []
    with mock.patch.object(plots, "save", lambda figure, path: figures.append(figure)):
        plots.plot_confusion_matrix(metrics, tmp_path / "confusion.png")
        plots.plot_mistakes(metrics, list(range(20)), "RGB", tmp_path / "mistakes.png")
    confusion, mistakes = figures
    for figure in figures:
        figure.draw_without_rendering()
    names = [label.get_text() for label in confusion.axes[0].get_yticklabels()]
    assert names == plots.class_labels(classes)
    boxes = [label.get_window_extent() for label in confusion.axes[0].get_yticklabels()]
    boxes += [axis.title.get_window_extent() for axis in mistakes.axes[:20]]
    for groups in (boxes[: len(classes)], boxes[len(classes) :]):
        assert not any(a.overlaps(b) for i, a in enumerate(groups) for b in groups[:i])
    for figure in figures:
        plots.plt.close(figure)


def test_with_five_classes_or_fewer_there_is_no_top5() -> None:
    metrics = compute_metrics(PROBABILITIES[:5, :5], LABELS[:5], CLASSES[:5], 1.0)
    assert metrics.top5 is None
    assert metrics.top5_interval is None


def test_precision_recall_and_f1_of_each_class() -> None:
    rows = compute_metrics(PROBABILITIES, LABELS, CLASSES, 1.0).per_class
    assert [row["images"] for row in rows] == [1] * 6
    assert [row["recall"] for row in rows] == [100, 100, 0, 0, 100, 0]
    assert [row["precision"] for row in rows] == pytest.approx([100 / 3, 100, 0, 0, 50, 0])
    assert [row["f1"] for row in rows] == pytest.approx([50, 100, 0, 0, 200 / 3, 0])


def test_a_class_without_images_has_a_row_of_zeros() -> None:
    rows = compute_metrics(PROBABILITIES[:2], LABELS[:2], CLASSES, 1.0).per_class
    assert rows[5] == {"class": CLASSES[5], "images": 0, "precision": 0, "recall": 0, "f1": 0}


def test_calibration_error_is_the_mean_gap_over_bins() -> None:
    # Bins of 1/15: 0.75 twice in one (both right), 0.50 and 0.52 in one (both wrong), 0.90 and 0.60 alone.
    gaps = [2 * abs(0.75 - 1), 2 * abs(0.51 - 0), abs(0.90 - 1), abs(0.60 - 0)]
    assert expected_calibration_error(PROBABILITIES, LABELS) == pytest.approx(sum(gaps) / 6, abs=1e-6)


def test_a_sure_and_right_classifier_is_calibrated() -> None:
    assert expected_calibration_error(np.eye(4, dtype=np.float32), np.arange(4)) == 0
    assert expected_calibration_error(np.eye(4, dtype=np.float32), np.roll(np.arange(4), 1)) == 1


@settings(deadline=None)
@given(st.integers(1, 100_000), st.data())
def test_the_interval_is_wilsons(count: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, count))
    z, share = 1.959963984540054, hits / count
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = wilson_interval(hits, count)
    assert low == pytest.approx(100 * (center - half), abs=1e-6)
    assert high == pytest.approx(100 * (center + half), abs=1e-6)
    assert low - 1e-9 <= 100 * share <= high + 1e-9


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(trained_run(), tmp_path_factory.mktemp("evaluated") / "run"))


@pytest.fixture(scope="module")
def evaluated(run: Path) -> tuple[Finished, Path]:
    ended = atconv("evaluate", run, "digits", "--workers=0")
    assert ended.code == 0, ended.err
    return ended, run / "evaluation" / "digits-test"


@pytest.mark.plots
def test_the_command_writes_every_file(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    assert atconv("evaluate", run, "digits", "--workers=0").code == 0
    folder = run / "evaluation" / "digits-test"
    names = ["confusion.png", "metrics.json", "mistakes.png", "per_class.csv", "predictions.csv"]
    assert sorted(p.name for p in folder.iterdir()) == names
    for image in folder.glob("*.png"):
        with Image.open(image) as image:
            assert min(image.size) > 200


def test_the_command_prints_what_it_writes(evaluated: tuple[Finished, Path]) -> None:
    ended, folder = evaluated
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("top1", "top5", "calibration_error"):
        assert f"{metrics[name]:.2f} %" in ended.out
    for value in (*metrics["top1_interval"], *metrics["top5_interval"]):
        assert f"{value:.2f}" in ended.out
    assert "images/s" in ended.out
    assert str(folder) in ended.out.replace("\n", "")


def test_the_files_agree_with_each_other(evaluated: tuple[Finished, Path]) -> None:
    _, folder = evaluated
    metrics = json.loads((folder / "metrics.json").read_text())
    predictions, classes = read_rows(folder / "predictions.csv"), read_rows(folder / "per_class.csv")
    right = [row["label"] == row["predicted"] for row in predictions]
    assert len(predictions) == metrics["images"] == sum(int(row["images"]) for row in classes)
    assert 100 * sum(right) / len(right) == pytest.approx(metrics["top1"])
    for row in classes:
        own = [r["predicted"] == row["class"] for r in predictions if r["label"] == row["class"]]
        assert int(row["images"]) == len(own)
        assert float(row["recall"]) == pytest.approx(100 * sum(own) / len(own))


def test_labels_are_those_of_the_data(evaluated: tuple[Finished, Path]) -> None:
    source = DigitsSource()
    for row in read_rows(evaluated[1] / "predictions.csv"):
        assert source.classes[source.labels[int(row["image"])]] == row["label"]


def test_the_test_split_is_the_one_held_out_in_training(run: Path, evaluated: tuple[Finished, Path]) -> None:
    held_out = json.loads((run / "split.json").read_text())["test"]
    assert [row["image"] for row in read_rows(evaluated[1] / "predictions.csv")] == held_out


def test_evaluation_says_what_the_run_said_after_training(
    run: Path, evaluated: tuple[Finished, Path]
) -> None:
    after_training = json.loads((run / "metrics.json").read_text())
    now = json.loads((evaluated[1] / "metrics.json").read_text())
    for name in ("images", "top1", "top1_interval", "top5", "calibration_error", "per_class"):
        assert now[name] == after_training[name], name


def test_another_split_may_be_asked_for(run: Path) -> None:
    ended = atconv("evaluate", run, "digits", "--split=val", "--workers=0")
    assert ended.code == 0, ended.err
    held_out = json.loads((run / "split.json").read_text())["val"]
    rows = read_rows(run / "evaluation" / "digits-val" / "predictions.csv")
    assert [row["image"] for row in rows] == held_out


def save_digits(folder: Path, indices: list[int]) -> Path:
    source = DigitsSource()
    for i in indices:
        path = folder / source.classes[source.labels[i]] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.read(i, "L").save(path)
    return folder


def test_a_folder_of_other_images_is_evaluated_in_full(run: Path, tmp_path: Path) -> None:
    folder = save_digits(tmp_path / "others", [0, 1, 2, 11, 12])  # of the classes 0, 1 and 2 alone
    ended = atconv("evaluate", run, folder, "--workers=0")
    assert ended.code == 0, ended.err
    metrics = json.loads((run / "evaluation" / "others-all" / "metrics.json").read_text())
    assert metrics["images"] == 5
    assert [row["images"] for row in metrics["per_class"]] == [1, 2, 2, 0, 0, 0, 0, 0, 0, 0]


def test_unreadable_images_are_named_and_left_out_up_to_a_limit(run: Path, tmp_path: Path) -> None:
    folder = save_digits(tmp_path / "spoiled", range(20))
    (folder / "1" / "bad.png").write_text("text")
    for _ in range(2):
        ended = atconv("evaluate", run, folder, "--workers=0")
        assert ended.code == 0, ended.err
        assert "left out 1/bad.png" in ended.err
        result = run / "evaluation" / "spoiled-all"
        assert json.loads((result / "metrics.json").read_text())["images"] == 20
        [row] = read_rows(result / "skipped.csv")
        assert (row["split"], row["file"]) == ("all", "1/bad.png")
        assert "not a readable image" in row["reason"]
    (folder / "1" / "bad.png").unlink()
    assert atconv("evaluate", run, folder, "--workers=0").code == 0
    assert not (result / "skipped.csv").exists()
    for name in ("a", "b", "c"):
        (folder / "2" / f"{name}.png").write_text("text")
    ended = atconv("evaluate", run, folder, "--workers=0")
    assert ended.code == 2
    assert (
        "3 of 23 files are unreadable, more than max_skipped (5%) allows; the first is 2/a.png" in ended.err
    )
    for image in folder.glob("*/*.png"):
        image.write_text("text")
    everything = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((everything / "config.yaml").read_text())
    (everything / "config.yaml").write_text(yaml.safe_dump(config | {"max_skipped": 1.0}))
    ended = atconv("evaluate", everything, folder, "--workers=0")
    assert ended.code == 2
    assert "23 of 23 files are unreadable; the first is " in ended.err


def test_images_of_the_runs_own_split_that_became_unreadable_are_left_out(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"ant": 40, "bee": 40})
    options = {"data": str(data), "in_chans": 3, "test_fraction": 0.5}
    run = train_tiny(tmp_path / "run", **options)
    test = json.loads((run / "split.json").read_text())["test"]
    spoiled = data / test[0]
    spoiled.write_bytes(spoiled.read_bytes()[:-30])
    ended = atconv("evaluate", run, data)
    assert ended.code == 0, ended.err
    result = run / "evaluation" / "data-test"
    assert json.loads((result / "metrics.json").read_text())["images"] == len(test) - 1
    assert [row["file"] for row in read_rows(result / "skipped.csv")] == [test[0]]
    assert not (run / "skipped.csv").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: image_folder(root, {"1": 1, "wasp": 1}), "not among the run's classes: wasp"),
        (lambda root: root.mkdir(), "no images in"),
        (lambda root: None, "does not exist"),
    ],
    ids=["unknown class", "empty", "missing"],
)
def test_data_that_does_not_fit_ends_in_one_line(run: Path, tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "data")
    ended = atconv("evaluate", run, tmp_path / "data")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert message in ended.err


def test_a_split_that_the_data_lacks_ends_in_one_line(run: Path, tmp_path: Path) -> None:
    folder = save_digits(tmp_path / "flat", [0, 1, 2])
    ended = atconv("evaluate", run, folder, "--split=val")
    assert ended.code == 2
    assert "has no val split, only all" in ended.err


def test_all_splits_of_one_source_can_be_evaluated_together(run: Path) -> None:
    ended = atconv("evaluate", run, "digits", "--split=all", "--workers=0")
    assert ended.code == 0, ended.err
    assert json.loads((run / "evaluation" / "digits-all" / "metrics.json").read_text())["images"] == len(
        DigitsSource()
    )
