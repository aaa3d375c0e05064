from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import atconv as package
from atconv.data.listing import find_images
from atconv.data.sources.digits import DigitsSource
from support.tiny import atconv, trained_run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "below").mkdir()
    for i, name in enumerate(("a.png", "b.PNG", "below/c.png")):
        DigitsSource().read(i, "L").save(folder / name)
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.fixture(scope="module")
def with_a_bad_one(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(images, tmp_path_factory.mktemp("spoiled") / "images"))
    (folder / "bad.png").write_text("text")
    return folder


def test_predictions_are_those_of_the_loaded_model(images: Path) -> None:
    predictor = package.load(trained_run())
    paths = find_images([str(images)])
    inputs = torch.stack([predictor.transform(DigitsSource().read(i, "L")) for i in range(3)])
    with torch.inference_mode():
        expected = predictor.model(inputs).softmax(1)
    for result, row in zip(predictor.predict(paths, top=10), expected, strict=True):
        assert sorted(result.probabilities, reverse=True) == result.probabilities
        by_class = dict(zip(result.classes, result.probabilities, strict=True))
        assert [by_class[c] for c in predictor.classes] == pytest.approx(row.tolist(), abs=1e-6)
        assert sum(result.probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_predictions_do_not_depend_on_the_batch(with_a_bad_one: Path, batch_size: int) -> None:
    paths = find_images([str(with_a_bad_one)])
    predictor = package.load(trained_run())
    together = list(predictor.predict(paths, batch_size=batch_size))
    alone = [next(predictor.predict([path])) for path in paths]
    assert [p.image for p in together] == [str(path) for path in paths]
    for ours, single in zip(together, alone, strict=True):
        assert (ours.error is None) == (single.error is None) == ("bad" not in ours.image)
        assert ours.classes == single.classes
        assert ours.probabilities == pytest.approx(single.probabilities, abs=1e-6)


def test_folders_files_and_globs_give_each_image_once(images: Path) -> None:
    everything = [images / "a.png", images / "b.PNG", images / "below" / "c.png"]
    assert find_images([str(images)]) == everything
    assert find_images([str(images / "*.png"), str(images), str(images / "a.png")]) == everything
    assert find_images([str(images / "**" / "c.png")]) == everything[2:]


def test_a_name_that_looks_like_a_glob_is_a_name(images: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(images / "a.png", tmp_path / "a[1]*.png"))
    assert find_images([str(path)]) == [path]


def test_a_pattern_without_images_raises(images: Path, tmp_path: Path) -> None:
    for pattern in (str(tmp_path), str(tmp_path / "*.png"), str(tmp_path / "none.png")):
        with pytest.raises(FileNotFoundError, match="no image at"):
            find_images([str(images), pattern])


def test_shards_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "train-0.tar"
    path.touch()
    for pattern in (tmp_path, path, tmp_path / "*.tar"):
        with pytest.raises(FileNotFoundError, match=r"only tar files: atconv train, evaluate and probe read"):
            find_images([str(pattern)])


def test_the_table_shows_the_classes_of_each_image(images: Path) -> None:
    ended = atconv("predict", trained_run(), images, "--top=2")
    assert ended.code == 0, ended.err
    assert "3 images" in ended.out
    assert ended.out.count(" %") == 6


def test_json_holds_every_image(with_a_bad_one: Path) -> None:
    ended = atconv("predict", trained_run(), with_a_bad_one, "--json", "--top=3")
    assert ended.code == 0, ended.err
    results = {Path(p["image"]).name: p for p in json.loads(ended.out)}
    assert set(results) == {"a.png", "b.PNG", "c.png", "bad.png"}
    assert len(results["a.png"]["classes"]) == len(results["a.png"]["probabilities"]) == 3
    assert results["a.png"]["error"] is None
    assert "not a readable image" in results["bad.png"]["error"]


def test_csv_holds_a_row_for_each_rank(with_a_bad_one: Path) -> None:
    ended = atconv("predict", trained_run(), with_a_bad_one, "--csv", "--top=2")
    assert ended.code == 0, ended.err
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)


def test_an_unreadable_image_does_not_stop_the_others(with_a_bad_one: Path) -> None:
    ended = atconv("predict", trained_run(), with_a_bad_one)
    assert ended.code == 0
    assert "3 images" in ended.out
    assert ended.err.count("\n") == 1
    assert "bad.png: not a readable image" in ended.err


def test_more_classes_than_there_are_gives_all(images: Path) -> None:
    ended = atconv("predict", trained_run(), images / "a.png", "--top=99", "--json")
    assert len(json.loads(ended.out)[0]["classes"]) == 10


def test_a_transparent_and_a_deep_image_are_classified(tmp_path: Path) -> None:
    gray = DigitsSource().read(0, "L")
    gray.convert("RGBA").save(tmp_path / "rgba.png")
    gray.save(tmp_path / "gray.png")
    predictor = package.load(trained_run())
    gray_result, rgba_result = predictor.predict([tmp_path / "gray.png", tmp_path / "rgba.png"])
    assert gray_result.probabilities == rgba_result.probabilities


def test_the_table_shows_names_as_they_are(images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "a.png", tmp_path / "p[a].png")
    ended = atconv("predict", trained_run(), tmp_path / "p[a].png", "--top=1")
    assert "p[a].png" in ended.out.replace("\n", "")


def test_brackets_in_a_folder_name_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "scans [b]"
    folder.mkdir()
    Image.new("L", (4, 4)).save(folder / "a.png")
    assert find_images([str(folder / "*.png")]) == [folder / "a.png"]
