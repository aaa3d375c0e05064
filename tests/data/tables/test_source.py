from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from atconv.data.config import DataConfig
from atconv.data.formats import open_sources, recognize
from atconv.data.sources.base import ImageSource
from atconv.data.splits import Splits, load_splits, make_splits
from atconv.data.tables.source import TableSource
from support.tiny import image_folder, read_rows, tiny_config


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """DATA with images/0.png … 19.png."""
    image_folder(tmp_path / "data", {"images": 20})
    return tmp_path / "data"


def table(data: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    (data / name).write_text(text, encoding=encoding)
    return data / name


def opened(data: Path, **options: Any) -> ImageSource:
    sources = open_sources(DataConfig(data=str(data), **options))
    assert list(sources) == ["train"]
    return sources["train"]


def labels(source: ImageSource) -> dict[str, Any]:
    """The names of the classes of each image."""
    found = {}
    for i in range(len(source)):
        own = source.labels[i]
        numbers = np.flatnonzero(own) if source.multi_label else [own]
        found[source.name(i)] = [source.classes[number] for number in numbers]
    return found


ANIMALS = {"0.png": ["cat"], "1.png": ["dog, big"], "2.png": ["cat"]}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ('image,label\n0.png,cat\n1.png,"dog, big"\n2.png,cat\n', "utf-8"),
        ('image,label\n0.png,cat\n1.png,"dog, big"\n2.png,cat\n', "utf-8-sig"),
        ("image;label\n0.png;cat\n1.png;dog, big\n2.png;cat\n", "utf-16"),
        ('sep=;\r\nFile Name;Class\r\n"0.png";"cat"\r\n\r\n1.png;dog, big;;\r\n2.png;cat\r\n', "cp1252"),
        ("label\tnote\timage\ncat\tx\t0.png\ndog, big\ty\t./1.png\ncat\tz\t2.png\n", "utf-8"),
        ("0.png;cat\n1.png;dog, big\n2.png;cat\n", "utf-8"),
        (' id , category \n 0 , cat \n 1 , "dog, big"\n2,cat\n'.replace(' "', '"'), "utf-8"),
    ],
    ids=["csv", "bom", "utf16", "excel", "tabs", "no header", "ids"],
)
def test_a_table_says_what_each_image_is(images: Path, text: str, encoding: str) -> None:
    source = opened(table(images, text, encoding=encoding))
    assert labels(source) == ANIMALS
    assert source.read(1, "RGB").size == (8, 8)
    assert any("images from column" in remark for remark in source.remarks)


def test_a_guessed_encoding_and_unused_folds_are_named(images: Path) -> None:
    text = "image,label,fold\n0.png,猫,1\n1.png,狗,2\n"
    remarks = opened(table(images, text, encoding="gb18030")).remarks
    assert any("not in UTF-8, and its encoding was guessed as Windows-1252" in each for each in remarks)
    assert any("column fold is not used" in each for each in remarks)
    assert not any("encoding was" in each for each in opened(table(images, text)).remarks)


def test_a_column_may_say_which_images_are_for_validation(images: Path) -> None:
    path = table(images, "image,label,is_valid\n0.png,a,False\n1.png,b,False\n2.png,a,True\n")
    sources = open_sources(DataConfig(data=str(path)))
    names = {split: [source.name(i) for i in range(len(source))] for split, source in sources.items()}
    assert {split: [Path(name).name for name in own] for split, own in names.items()} == {
        "train": ["0.png", "1.png"],
        "val": ["2.png"],
    }


def test_a_list_of_files_and_numbers_is_a_table(images: Path) -> None:
    source = opened(table(images, "images/0.png 10\nimages/1.png 9\nimages/2.png 10\n", "train.txt"))
    assert source.classes == ["9", "10"]
    assert source.labels.tolist() == [1, 0, 1]


def test_parquet_holds_text_numbers_or_lists(images: Path) -> None:
    columns = {"image": ["0", "1", "2"], "tags": [["a", "b"], [], ["b"]], "rank": [1.0, 2.0, 1.0]}
    parquet.write_table(pa.table(columns), images / "labels.parquet")
    assert labels(opened(images)) == {"0.png": ["a", "b"], "1.png": [], "2.png": ["b"]}
    assert opened(images / "labels.parquet", label_column="rank").classes == ["1", "2"]
    with (
        mock.patch.dict("sys.modules", {"pyarrow": None}),
        pytest.raises(ModuleNotFoundError, match=r"pip install 'atconv\[tables\]'"),
    ):
        opened(images)


@pytest.mark.parametrize(
    "cells",
    [
        ["a;b", "a", "b;a", ""],
        ["a|b", "a", "a|b", ""],
        ["a, b", "a", "b,a", ""],
        ['["a", "b"]', '["a"]', '["b", "a"]', "[]"],
        ["['a', 'b']", "['a']", "['b', 'a']", "[]"],
    ],
)
def test_a_cell_may_hold_several_labels(images: Path, cells: list[str]) -> None:
    rows = "".join('{}.png,"{}"\n'.format(i, cell.replace('"', '""')) for i, cell in enumerate(cells))
    source = opened(table(images, f"image,labels\n{rows}"))
    assert source.classes == ["a", "b"]
    assert source.labels.tolist() == [[1, 1], [1, 0], [1, 1], [0, 0]]
    assert source.target(1).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("cells", "separator", "classes"),
    [
        (["bear, brown", "bear, polar", "fox"], None, ["bear, brown", "bear, polar", "fox"]),
        (["a;b", "a", "b"], "none", ["a", "a;b", "b"]),
        (["sunny day", "day", "sunny"], " ", ["day", "sunny"]),
        (["a/b", "b", "a"], "/", ["a", "b"]),
    ],
)
def test_a_separator_in_a_name_is_none(
    images: Path, cells: list[str], separator: str | None, classes: list[str]
) -> None:
    rows = "".join(f'{i}.png,"{cell}"\n' for i, cell in enumerate(cells))
    assert opened(table(images, f"image,label\n{rows}"), label_separator=separator).classes == classes


def test_columns_of_zeros_and_ones_are_classes(images: Path) -> None:
    path = table(images, "image,age,cat,dog\n0.png,3,0,1\n1.png,4,1,True\n2.png,5,0,\n")
    source = opened(path)
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [[0, 1], [1, 1], [0, 0]]
    assert opened(path, label_columns=["dog"]).labels.tolist() == [[1], [1], [0]]
    with pytest.raises(ValueError, match=r"labels.csv, row 2: column age holds '3'; .* holds 0 or 1"):
        opened(path, label_columns=["cat", "age"])


def test_a_split_column_and_tables_by_split_name_the_splits(images: Path) -> None:
    rows = "".join(f"{i},{'ab'[i % 2]},{('Train', 'valid', 'TEST')[i % 3]}\n" for i in range(12))
    whole = open_sources(DataConfig(data=str(table(images, f"id,label,Split\n{rows}"))))
    (images / "labels.csv").unlink()
    for name, start in (("train.csv", 0), ("val_labels.csv", 1), ("Test.csv", 2)):
        own = "".join(f"{i},{'ab'[i % 2]}\n" for i in range(start, 12, 3))
        table(images, f"id,label\n{own}", name)
    apart = open_sources(DataConfig(data=str(images)))
    for sources in (whole, apart):
        assert {name: len(source) for name, source in sources.items()} == {"train": 4, "val": 4, "test": 4}
    assert {n: labels(s) for n, s in whole.items()} == {n: labels(s) for n, s in apart.items()}


def test_kaggles_layout_is_recognized(tmp_path: Path) -> None:
    data = tmp_path / "data"
    image_folder(data, {"train": 6}, seed=0)
    image_folder(data / "x", {"test": 6}, seed=1)
    shutil.move(data / "x" / "test", data / "test")
    (data / "x").rmdir()
    table(data, "id,breed\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(6)), "train.csv")
    table(data, "id,breed\n0,a\n", "sample_submission.csv")
    source = opened(data)
    assert isinstance(source, TableSource)
    assert source.encoded(0) == (data / "train" / "0.png").read_bytes()
    table(data, "id\n0\n", "test.csv")
    assert list(open_sources(DataConfig(data=str(data)))) == ["train"]


def test_tables_in_the_folders_of_splits_are_recognized(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("valid", 1)):
        image_folder(tmp_path / "data", {split: 4}, seed)
        rows = "".join(f"{i}.png, {i % 2}, 1\n" for i in range(4))
        table(tmp_path / "data" / split, f"filename, cat, dog\n{rows}", "_classes.csv")
    sources = open_sources(DataConfig(data=str(tmp_path / "data")))
    assert [(name, source.classes) for name, source in sources.items()] == [
        ("train", ["cat", "dog"]),
        ("val", ["cat", "dog"]),
    ]


def test_folders_of_classes_are_not_given_up_for_a_table(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"train/a": 3, "train/b": 3, "val/a": 2})
    table(data, "image,label\na/0.png,x\n", "train.csv")
    assert open_sources(DataConfig(data=str(data)))["train"].classes == ["a", "b"]


@pytest.mark.parametrize("text", ["image,label\n0.png,a,b\n", ""])
def test_a_damaged_table_next_to_one_folder_is_named(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = image_folder(tmp_path / "data", {"pictures": 3})
    path = table(data, text)
    (source,) = open_sources(DataConfig(data=str(data))).values()
    (remark,) = [each for each in source.remarks if each.startswith(f"not read, {path}")]
    assert ("row 2 has 3 cells" if text else "is empty") in remark


def test_images_are_found_near_the_table_and_nowhere_else(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"pics": 2, "more": 3})
    secret = image_folder(tmp_path / "secret", {"x": 1}) / "x" / "0.png"
    path = table(data, f"image,label\npics/0.png,a\n{data}/pics/1.png,b\nmore\\\\2.png,a\n2.png,b\n0.png,a\n")
    source = opened(path)
    assert [source.name(i) for i in range(3)] == ["pics/0.png", "pics/1.png", "more/2.png"]
    with pytest.raises(ValueError, match=r"row 6: 0.png lies in several folders: .*more, .*pics"):
        source.encoded(len(source) - 1)
    for name in (secret, "../secret/x/0.png", "pics/../../secret/x/0.png"):
        with pytest.raises(
            ValueError, match=r"row 2: .* lies outside .*data: give the folder .* as --images"
        ):
            opened(table(data, f"image,label\n{name},a\npics/1.png,b\n")).encoded(0)
    path = table(data, f"image,label\n{secret},a\nsecret/x/0,a\n")
    assert len(opened(path, images=str(tmp_path))) == 1
    with pytest.raises(ValueError, match=r"none of the images is found: .*row 2: none.png does not exist"):
        opened(table(data, "image,label\nnone.png,a\n"))
    with pytest.raises(ValueError, match=r"the folder of images .*nowhere does not exist"):
        opened(path, images=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image,label\n0.png,a\n1.png,\n", {}, r"labels.csv, row 3: the label is empty"),
        ("image,label\n0.png,a\n0.png,b\n", {}, r"row 3: 0.png has another label than in row 2"),
        ("image,label\n0.png,a,b\n", {}, r"row 2 has 3 cells, and there are 2 columns"),
        ("image,label\n", {}, r"has no rows"),
        ("", {}, "is empty"),
        ("a,b\n1,2\n", {}, r"known to hold images: give --image-column, one of 'a', 'b'"),
        ("image,p,q\n0.png,1.5,x\n", {}, r"give --label-column, or --label-columns .* of 'p', 'q'"),
        ("image,label,label\n0.png,a,b\n", {}, "two columns of one name: label"),
        ("image,label\n0.png,a\n", {"label_column": "kind"}, r"no column 'kind'; it has 'image', 'label'"),
        ("image,label\n0.png,a\n", {"label_column": "label", "label_columns": ["label"]}, "not both"),
        ("image,label\n0.png,0.5\n1.png,3\n", {}, r"row 2: the label is 0.5, and classes are expected"),
        ("image,label\n" + "".join(f"{i}.png,{i}\n" for i in range(20)), {}, "20 different labels in 20"),
        ("image,label,split\n0.png,a,later\n", {"split_column": "split"}, "'later' in column split is no"),
        ("image,label,split\n0.png,a,test\n", {}, "has no training split, only test"),
        ("filename,class,xmin,ymin,xmax,ymax\n0.png,a,1,1,2,2\n", {}, "holds boxes: convert it to COCO's"),
        ("image,label\n" + "x" * 200_000 + ",a\n", {}, "cannot be read as a table: field larger"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_said(
    images: Path, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        opened(table(images, text), **options)


def test_options_of_tables_are_rejected_for_other_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--label-column x has no effect"):
        opened(image_folder(tmp_path / "data", {"a": 2, "b": 2}), label_column="x")
    image_folder(tmp_path / "two", {"images": 4})
    for name in ("one.csv", "other.csv"):
        table(tmp_path / "two", "image,label\n0.png,a\n", name)
    with pytest.raises(ValueError, match=r"holds 2 tables: one.csv, other.csv. Give one of them"):
        opened(tmp_path / "two")


def split(data: Path, run: Path, **options: Any) -> Splits:
    run.mkdir()
    config = tiny_config(data=str(data), in_chans=3, test_fraction=0.2, val_fraction=0.2, **options)
    made = make_splits(config, run)
    again = load_splits(config, run)
    assert [list(s.indices) for s in made.by_name.values()] == [
        list(s.indices) for s in again.by_name.values()
    ]
    return made


def test_missing_files_are_skipped_up_to_a_share(images: Path, tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(21))
    made = split(table(images, f"image,label\n{rows}3.png,b\n"), tmp_path / "run")
    assert sum(map(len, made.by_name.values())) == 20
    [skipped] = read_rows(tmp_path / "run" / "skipped.csv")
    assert skipped["file"] == "20.png"
    assert "labels.csv, row 22: 20.png does not exist in" in skipped["reason"]
    with pytest.raises(ValueError, match=r"more than max_skipped \(0%\)"):
        split(images / "labels.csv", tmp_path / "none", max_skipped=0.0)


def test_rows_of_other_splits_are_named_and_not_used(images: Path) -> None:
    splits = ["train", "val", "extra", ""]
    rows = "".join(f"{i}.png,{'ab'[i % 2]},{splits[i % 4]}\n" for i in range(20))
    path = table(images, f"image,label,split\n{rows}")
    sources = open_sources(DataConfig(data=str(path)))
    assert {name: len(source) for name, source in sources.items()} == {"train": 5, "val": 5}
    assert (
        f"not used, rows of other splits in column split of {path}: '' (5 rows), 'extra' (5 rows)"
        in sources["train"].remarks
    )


def test_splits_of_several_labels_hold_every_class(images: Path, tmp_path: Path) -> None:
    rows = "".join(f"{i},{'a;' * (i % 2)}{'b;' * (i % 3 == 0)}{'c' * (i < 3)}\n" for i in range(20))
    made = split(table(images, f"id,tags\n{rows}"), tmp_path / "run")
    assert made.classes == ["a", "b", "c"]
    assert all((part.counts > 0).all() for part in made.by_name.values())
    assert sum(part.counts for part in made.by_name.values()).tolist() == [10, 7, 3]
    with pytest.raises(ValueError, match="several labels an image: one class each"):
        _ = made["train"].labels


@pytest.mark.parametrize("seed", range(5))
def test_a_table_of_few_images_is_split_and_every_class_is_trained(
    images: Path, tmp_path: Path, seed: int
) -> None:
    rows = "".join(f"{i},{flags}\n" for i, flags in enumerate(("0,1", "1,0", "0,0", "1,1", "0,0", "0,0")))
    made = split(table(images, f"id,cat,dog\n{rows}"), tmp_path / "few", seed=seed)
    assert all(map(len, made.by_name.values()))
    assert (made["train"].counts > 0).all()
    rows = "".join(f"{i},{'a;' * (i < 10)}{'b;' * (i >= 10)}{'rare' * (i == 3)}\n" for i in range(20))
    made = split(table(images, f"id,tags\n{rows}"), tmp_path / "rare", seed=seed)
    assert made["train"].counts[made.classes.index("rare")] == 1


def test_a_run_of_several_labels_takes_data_of_one(images: Path) -> None:
    source = opened(table(images, "image,label\n0.png,b\n1.png,a\n2.png,b\n"))
    source.to_multi_label()
    source.relabel(["b", "x", "a"])
    assert source.labels.tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"not among the run's classes: a\. Leave them out"):
        source.relabel(["b"])


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".csv", ".tsv", ".txt", ".parquet"]))
def test_any_bytes_are_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("any") / f"labels{suffix}"
    path.write_bytes(content)
    assert recognize(path) is not None
    with pytest.raises(ValueError, match="labels"):
        open_sources(DataConfig(data=str(path)))


def test_a_column_that_was_chosen_may_have_few_images_a_class(images: Path) -> None:
    rows = [f"{i}.png,class {i // 2 + 1}" if i < 8 else f"{i}.png,class {i}" for i in range(20)]
    path = table(images, "image,label\n" + "\n".join(rows))
    with pytest.raises(ValueError, match="Are they measurements or names"):
        opened(path)
    assert len(opened(path, label_column="label").classes) == 16


@pytest.mark.parametrize("unknown", ["-1", "-1.0", "?", "NaN"])
def test_an_unknown_in_columns_of_zeros_and_ones_is_named_with_its_row(images: Path, unknown: str) -> None:
    rows = [f"{i}.png,{i},{'' if i == 3 else 1.0},{unknown if i == 5 else 0.0}" for i in range(20)]
    table(images, "Path,Age,Edema,Fracture\n" + "\n".join(rows))
    with pytest.raises(
        ValueError, match=rf"labels\.csv, row 7: column Fracture holds '{re.escape(unknown)}'; .*0 or 1"
    ):
        opened(images)
