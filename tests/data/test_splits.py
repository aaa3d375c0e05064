from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets._base import load_digits

from atconv.data.folders import SPLITS
from atconv.data.formats import open_sources
from atconv.data.sources.digits import DigitsSource
from atconv.data.sources.folders import FolderSource
from atconv.data.splits import Splits, load_splits, make_splits, open_splits, stratified_holdout
from atconv.engine.run import Run
from support.tiny import image_folder, read_rows, tiny_config


def split(data: Path, run: Path, **options: Any) -> Splits:
    run.mkdir(exist_ok=True)
    defaults = {"data": str(data), "in_chans": 3, "test_fraction": 0.2, "val_fraction": 0.2}
    config = tiny_config(**(defaults | options))
    return make_splits(config, run, config.seed)


def names(splits: Splits) -> dict[str, list[str]]:
    return {name: [split.name(i) for i in range(len(split))] for name, split in splits.by_name.items()}


def contents(splits: Splits) -> dict[str, set[bytes]]:
    return {n: {s.source.encoded(i) for i in s.indices} for n, s in splits.by_name.items()}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "data", {"ant": 20, "bee": 10, "cat": 30})


def test_a_flat_folder_is_split_by_class(flat: Path, tmp_path: Path) -> None:
    splits = split(flat, tmp_path / "run")
    assert splits.classes == ["ant", "bee", "cat"]
    assert [splits["test"].labels.count(c) for c in range(3)] == [4, 2, 6]
    assert [splits["val"].labels.count(c) for c in range(3)] == [3, 2, 5]  # of the 16, 8 and 24 that are left
    everything = sorted(name for split in names(splits).values() for name in split)
    assert everything == sorted(p.relative_to(flat).as_posix() for p in flat.rglob("*.png"))


def test_a_label_is_the_folder_an_image_lies_in(flat: Path, tmp_path: Path) -> None:
    train = split(flat, tmp_path / "run")["train"]
    for i, label in enumerate(train.labels):
        assert train.name(i).startswith(["ant", "bee", "cat"][label])


def test_the_split_follows_from_the_seed(flat: Path, tmp_path: Path) -> None:
    first, again, other = (names(split(flat, tmp_path / f"run{i}", seed=s)) for i, s in enumerate((1, 1, 2)))
    assert first == again
    assert all(first[name] != other[name] for name in SPLITS)


def test_the_saved_split_is_opened_again(flat: Path, tmp_path: Path) -> None:
    made = split(flat, tmp_path / "run", seed=3)
    image_folder(tmp_path / "later", {"ant": 5}, seed=9)
    for i, path in enumerate((tmp_path / "later").rglob("*.png")):
        shutil.copy(path, flat / "ant" / f"new{i}.png")
    config = tiny_config(data=str(flat), in_chans=3, seed=4)
    assert names(load_splits(config, tmp_path / "run")) == names(made)


def test_a_new_run_opens_its_data_once(flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = mock.Mock(side_effect=open_sources)
    monkeypatch.setattr("atconv.data.splits.open_sources", opened)
    run, accelerator = Run.create(tmp_path / "run"), mock.Mock(is_main_process=True)
    made = open_splits(tiny_config(data=str(flat), in_chans=3), 0, run, accelerator)
    assert opened.call_count == 1
    loaded = open_splits(tiny_config(data=str(flat), in_chans=3), 0, run, accelerator)
    assert opened.call_count == 2
    assert names(loaded) == names(made)
    assert {name: loaded[name].labels for name in SPLITS} == {name: made[name].labels for name in SPLITS}


def test_an_image_of_the_saved_split_that_is_gone_is_named(flat: Path, tmp_path: Path) -> None:
    made = split(flat, tmp_path / "run")
    gone = made["train"].name(0)
    (flat / gone).unlink()
    with pytest.raises(ValueError, match=f"no longer in .*{gone}"):
        load_splits(tiny_config(data=str(flat), in_chans=3), tmp_path / "run")


def test_copies_of_an_image_stay_in_one_split(flat: Path, tmp_path: Path) -> None:
    for name, copies in (("ant/0.png", 9), ("bee/1.png", 2), ("cat/2.png", 5)):
        for i in range(copies):
            shutil.copy(flat / name, (flat / name).with_name(f"copy{name[4]}{i}.png"))
    shutil.copy(flat / "ant/3.png", flat / "bee" / "from_ant.png")
    for seed in range(5):
        images = contents(split(flat, tmp_path / f"run{seed}", seed=seed))
        assert not images["train"] & images["test"]
        assert not images["train"] & images["val"]
        assert not images["val"] & images["test"]


@pytest.fixture
def with_splits(tmp_path: Path) -> Path:
    for seed, (split, counts) in enumerate(
        {"train": {"ant": 10, "bee": 10}, "val": {"ant": 3, "bee": 2}, "test": {"ant": 4, "bee": 4}}.items()
    ):
        image_folder(tmp_path / "data" / split, counts, seed)
    return tmp_path / "data"


def test_splits_of_the_data_are_used(with_splits: Path, tmp_path: Path) -> None:
    splits = split(with_splits, tmp_path / "run")
    assert {split: len(images) for split, images in names(splits).items()} == {
        "train": 20,
        "val": 5,
        "test": 8,
    }
    assert "held out" not in splits.message


@pytest.mark.parametrize("spelling", ["valid", "validation"])
def test_other_names_of_the_splits_are_known(with_splits: Path, tmp_path: Path, spelling: str) -> None:
    (with_splits / "val").rename(with_splits / spelling)
    (with_splits / "train").rename(with_splits / "training")
    assert [len(images) for images in names(split(with_splits, tmp_path / "run")).values()] == [20, 5, 8]


def test_validation_is_held_out_of_train_where_it_is_missing(with_splits: Path, tmp_path: Path) -> None:
    shutil.rmtree(with_splits / "val")
    splits = split(with_splits, tmp_path / "run")
    assert [len(images) for images in names(splits).values()] == [16, 4, 8]
    assert (splits["val"].source.root, splits["test"].source.root) == (
        with_splits / "train",
        with_splits / "test",
    )
    assert "val held out of train, stratified, seed 0" in splits.message


def test_no_test_split_is_made_up_where_validation_is_given(with_splits: Path, tmp_path: Path) -> None:
    shutil.rmtree(with_splits / "test")
    splits = split(with_splits, tmp_path / "run")
    assert "test" not in splits.by_name
    assert len(splits["train"]) == 20


def test_an_image_in_two_splits_leaves_the_earlier_one(with_splits: Path, tmp_path: Path) -> None:
    shutil.copy(with_splits / "test/ant/0.png", with_splits / "train/ant/leak.png")
    shutil.copy(with_splits / "val/bee/0.png", with_splits / "train/bee/leak.png")
    shutil.copy(with_splits / "test/bee/1.png", with_splits / "val/bee/leak.png")
    splits = split(with_splits, tmp_path / "run")
    images = contents(splits)
    assert not images["train"] & (images["val"] | images["test"])
    assert not images["val"] & images["test"]
    assert [len(s) for s in images.values()] == [20, 5, 8]
    rows = {(row["split"], row["file"]): row["reason"] for row in read_rows(tmp_path / "run" / "skipped.csv")}
    assert rows == {
        ("train", "ant/leak.png"): "same image as test/ant/0.png",
        ("train", "bee/leak.png"): "same image as val/bee/0.png",
        ("val", "bee/leak.png"): "same image as test/bee/1.png",
    }


@pytest.mark.parametrize("checked", ["train", "val"])
def test_a_split_of_nothing_but_copies_is_rejected(with_splits: Path, tmp_path: Path, checked: str) -> None:
    shutil.rmtree(with_splits / checked)
    shutil.copytree(with_splits / "test", with_splits / checked)
    with pytest.raises(
        ValueError, match=rf"all images of the {checked} split .* same image as test/ant/0.png"
    ):
        split(with_splits, tmp_path / "run")


def test_a_split_with_unknown_classes_is_rejected(with_splits: Path, tmp_path: Path) -> None:
    image_folder(with_splits / "test", {"wasp": 1})
    with pytest.raises(ValueError, match=r"test has class folders .*: wasp\. Leave them out, or"):
        split(with_splits, tmp_path / "run")


def test_a_split_may_lack_a_class(with_splits: Path, tmp_path: Path) -> None:
    shutil.rmtree(with_splits / "val" / "bee")
    splits = split(with_splits, tmp_path / "run")
    assert splits["val"].labels == [0, 0, 0]
    assert splits.classes == ["ant", "bee"]


def test_splits_without_train_are_rejected(with_splits: Path, tmp_path: Path) -> None:
    shutil.rmtree(with_splits / "train")
    with pytest.raises(ValueError, match="no train folder"):
        split(with_splits, tmp_path / "run")


def spoil(folder: Path) -> dict[str, str]:
    """Four files of the kinds that are met in practice."""
    image = (folder / "ant" / "0.png").read_bytes()
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    (folder / "ant" / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (folder / "ant" / "cut.png").write_bytes(image[: len(image) - 30])
    (folder / "bee" / "notes.png").write_text("this is a text")
    (folder / "cat" / "empty.png").write_bytes(b"")
    return {
        "ant/cut.jpg": "truncated",
        "ant/cut.png": "",
        "bee/notes.png": "not in an image format",
        "cat/empty.png": "",
    }


def test_unreadable_files_are_listed_and_left_out(flat: Path, tmp_path: Path) -> None:
    spoiled = spoil(flat)
    splits = split(flat, tmp_path / "run", max_skipped=0.1)
    rows = read_rows(tmp_path / "run" / "skipped.csv")
    assert [row["file"] for row in rows] == sorted(spoiled)
    for row in rows:
        assert row["split"] == "train"
        assert spoiled[row["file"]] in row["reason"]
        assert row["reason"]
    used = {name for split in names(splits).values() for name in split}
    assert not used & set(spoiled)
    assert len(used) == 60


def test_too_many_unreadable_files_stop_the_run(flat: Path, tmp_path: Path) -> None:
    spoil(flat)
    with pytest.raises(ValueError, match=r"4 of 64 files are unreadable.*max_skipped \(5%\).*skipped\.csv"):
        split(flat, tmp_path / "run", max_skipped=0.05)
    assert len(read_rows(tmp_path / "run" / "skipped.csv")) == 4


def test_a_run_needs_a_readable_file_whatever_the_limit(tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"2 of 2 files are unreadable; they are listed in .*skipped\.csv"):
        split(tmp_path / "data", tmp_path / "run", max_skipped=1.0)


def test_reading_headers_alone_finds_what_is_no_image(flat: Path, tmp_path: Path) -> None:
    spoil(flat)
    split(flat, tmp_path / "run", max_skipped=0.1, check_images="header")
    unreadable = {row["file"] for row in read_rows(tmp_path / "run" / "skipped.csv")}
    assert {"bee/notes.png", "cat/empty.png"} <= unreadable
    assert "ant/cut.jpg" not in unreadable


def test_unchecked_files_are_all_used(flat: Path, tmp_path: Path) -> None:
    spoil(flat)
    splits = split(flat, tmp_path / "run", check_images="none")
    assert sum(map(len, names(splits).values())) == 64


def test_hidden_files_and_folders_and_other_files_are_left_out(flat: Path, tmp_path: Path) -> None:
    shutil.copy(flat / "ant/0.png", flat / "ant" / "._0.png")
    (flat / ".thumbnails").mkdir()
    shutil.copy(flat / "ant/0.png", flat / ".thumbnails" / "0.png")
    (flat / "ant" / "labels.txt").write_text("none")
    (flat / "readme.md").write_text("none")
    assert sum(map(len, names(split(flat, tmp_path / "run")).values())) == 60


def test_images_in_a_hidden_folder_of_a_class_are_left_out(flat: Path) -> None:
    (flat / "ant" / ".cache").mkdir()
    shutil.copy(flat / "ant/0.png", flat / "ant" / ".cache" / "0.png")
    assert len(FolderSource(flat)) == 60


def test_images_below_a_class_folder_belong_to_it(flat: Path) -> None:
    (flat / "ant" / "more" / "deep").mkdir(parents=True)
    shutil.copy(flat / "ant/0.png", flat / "ant" / "more" / "deep" / "X.PNG")
    source = FolderSource(flat)
    assert [source.labels[i] for i in range(len(source)) if source.name(i) == "ant/more/deep/X.PNG"] == [0]


def test_a_class_of_one_image_is_trained_on(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"ant": 10, "bee": 1})
    by_split = names(split(data, tmp_path / "run"))
    assert "bee/0.png" in by_split["train"]


@pytest.mark.parametrize("counts", [{}, {"ant": 0, "bee": 0}], ids=["no classes", "no images"])
def test_an_empty_folder_is_rejected(tmp_path: Path, counts: dict[str, int]) -> None:
    (tmp_path / "data").mkdir()
    image_folder(tmp_path / "data", counts)
    with pytest.raises(ValueError, match=r"no images in .*CLASS/image\.jpg"):
        split(tmp_path / "data", tmp_path / "run")


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 1 class: classification needs two or more"):
        split(image_folder(tmp_path / "data", {"ant": 9}), tmp_path / "run")


def test_a_split_without_images_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the test split of .* has no images"):
        split(image_folder(tmp_path / "data", {"ant": 1, "bee": 1}), tmp_path / "run")


def test_a_missing_folder_says_what_data_may_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist: give an image folder, .* or digits"):
        split(tmp_path / "none", tmp_path / "run")


def test_digits_need_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.datasets.load_digits", load_digits)  # other tests use a few
    (tmp_path / "run").mkdir()
    splits = make_splits(tiny_config(test_fraction=0.2, val_fraction=0.1), tmp_path / "run")
    by_split = names(splits)
    assert len(splits.classes) == 10
    assert sum(map(len, by_split.values())) == len({n for split in by_split.values() for n in split}) == 1797
    assert len(splits["test"]) == pytest.approx(0.2 * 1797, abs=10)
    assert json.loads((tmp_path / "run" / "split.json").read_text())["test"] == by_split["test"]


def test_digits_are_ink_on_black() -> None:
    source = DigitsSource()
    seen = np.asarray(source.read(5, "L"), dtype=float)
    assert np.abs(seen - load_digits().images[5] * 255 / 16).max() <= 0.5
    assert source.labels[5] == load_digits().target[5]
    assert source.read(5, "RGB").mode == "RGB"


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
    st.data(),
)
def test_a_holdout_keeps_something_of_every_class(
    labels: list[int], fraction: float, seed: int, data: st.DataObject
) -> None:
    digests: list[bytes | None] = data.draw(
        st.lists(st.none() | st.sampled_from([b"x", b"y"]), min_size=len(labels), max_size=len(labels))
    )
    kept, held = stratified_holdout(list(range(len(labels))), labels, digests, fraction, seed)
    assert sorted(kept + held) == list(range(len(labels)))
    assert not {digests[i] for i in kept if digests[i]} & {digests[i] for i in held if digests[i]}
    for label in set(labels):
        alone = [i for i in range(len(labels)) if labels[i] == label and digests[i] is None]
        if len(alone) >= 2:
            here = {i for i, own in enumerate(labels) if own == label}
            assert here & set(kept)
            assert here & set(held)


def test_classes_without_images_and_images_in_two_classes_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = image_folder(tmp_path / "data", {"a": 6, "b": 6, "lonely": 1})
    (data / "empty").mkdir()
    shutil.copy(data / "a" / "0.png", data / "b" / "copy.png")
    (tmp_path / "run").mkdir()
    with caplog.at_level("INFO", "atconv"):
        make_splits(tiny_config(data=str(data), test_fraction=0.3, val_fraction=0.3), tmp_path / "run")
    assert "no images in empty" in caplog.messages
    assert "one image, which is never tested, in lonely" in caplog.messages
    assert "1 image lies in two classes: b/copy.png is a/0.png" in caplog.messages


def test_images_without_class_folders_are_one_class(tmp_path: Path) -> None:
    data = image_folder(tmp_path, {"faces": 9}) / "faces"
    (tmp_path / "run").mkdir()
    config = tiny_config(data=str(data), test_fraction=0.3, val_fraction=0.3)
    with pytest.raises(ValueError, match="has 1 class: classification needs two or more"):
        make_splits(config, tmp_path / "run")
    splits = make_splits(config, tmp_path / "run", min_classes=1)
    assert splits.classes == ["faces"]
    assert sum(map(len, splits.by_name.values())) == 9
