"""Damaged files of a run end in one line that names them, whatever the damage and the task."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import atconv
from atconv.data.splits import load_splits
from atconv.io import read_rows
from support.tiny import trained_run
from support.tiny_dense import detection_run, segmentation_run
from support.tiny_sit import generation_run

RUNS: dict[str, Callable[[], Path]] = {
    "classification": trained_run,
    "detection": detection_run,
    "segmentation": segmentation_run,
    "generation": generation_run,
}
VALUES: list[Any] = [
    None, True, 0, -1, 3, 2.5, float("nan"), 10**400, "", "x", "a\nb", "caf\udce9",
    [], [1], ["x"], [None], [[1]], {}, {"x": 1}, [0] * 9,
]  # fmt: skip


def split_of(run: Path) -> object:
    predictor: Any = atconv.load(run)
    if predictor.task in ("classification", "generation"):
        return load_splits(predictor.config, run)
    return predictor.choose_split(None, "val", exif=None)


CASES = [
    *((task, "config.yaml", atconv.load) for task in RUNS),
    *((task, "config.json", atconv.load) for task in ("classification", "detection", "segmentation")),
    *((task, "split.json", split_of) for task in RUNS),
    ("generation", "model_index.json", atconv.load),
    ("generation", "transformer/config.json", atconv.load),
    ("generation", "scheduler/scheduler_config.json", atconv.load),
]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("damaged")
    return {task: Path(shutil.copytree(make(), folder / task)) for task, make in RUNS.items()}


def places(content: Any) -> list[tuple[Any, ...]]:
    """Where values stand in nested lists and mappings; the empty place is all of it."""
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content[:3])
    return [(), *((key, *rest) for key, value in items for rest in places(value))]


def damaged(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """The content with another value in a place; without it where the value is KeyError."""
    if not place:
        return None if value is KeyError else value
    target = content
    for key in place[:-1]:
        target = target[key]
    if value is KeyError:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    return content


def check(use: Callable[[Path], object], run: Path, file: Path, text: bytes) -> None:
    """Either the run is read all the same, or one line says what is wrong with it."""
    original, message = file.read_bytes(), str(run)
    file.write_bytes(text)
    try:
        use(run)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    finally:
        file.write_bytes(original)
    assert str(run) in message
    assert "\n" not in message


@pytest.mark.parametrize("examples", [5, pytest.param(15, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("task", "name", "use"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_value_of_another_kind_is_read_or_named(
    copies: dict[str, Path], task: str, name: str, use: Callable[[Path], object], examples: int
) -> None:
    @settings(max_examples=examples, deadline=None, database=None)
    @given(data=st.data())
    def check_one(data: st.DataObject) -> None:
        check_another_value(copies, task, name, use, data)

    check_one()


def check_another_value(
    copies: dict[str, Path], task: str, name: str, use: Callable[[Path], object], data: st.DataObject
) -> None:
    file = copies[task] / name
    is_yaml = file.suffix == ".yaml"
    content = yaml.safe_load(file.read_text()) if is_yaml else json.loads(file.read_text())
    place = data.draw(st.sampled_from(places(content)))
    content = damaged(content, place, data.draw(st.sampled_from([*VALUES, KeyError])))
    text = yaml.safe_dump(content) if is_yaml else json.dumps(content)
    check(use, copies[task], file, text.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    ("task", "place", "value"),
    [
        ("detection", ("detector", "mean"), "x"),
        ("detection", ("detector", "mean"), ["x"]),
        ("detection", ("detector", "min_size"), [0]),
        ("detection", ("detector", "in_chans"), 2),
        ("detection", ("detector", "detector_args"), 3),
        ("segmentation", ("_atconv", "transform", "std"), [0.0]),
        ("segmentation", ("_atconv", "transform", "short_side"), "wide"),
        ("segmentation", ("_atconv", "flip_tta"), "x"),
        ("segmentation", ("_atconv", "segmenter", "architecture"), "vnet"),
    ],
    ids=str,
)
def test_a_damaged_option_of_a_model_names_its_file(
    copies: dict[str, Path], task: str, place: tuple[str, ...], value: Any
) -> None:
    file = copies[task] / "config.json"
    original = file.read_bytes()
    file.write_text(json.dumps(damaged(json.loads(original), place, value)))
    try:
        with pytest.raises(ValueError, match=f"{re.escape(str(file))} is damaged: |model in {copies[task]}"):
            atconv.load(copies[task])
    finally:
        file.write_bytes(original)


@pytest.mark.parametrize(
    ("task", "name", "place", "value", "words"),
    [
        ("classification", "config.json", ("pretrained_cfg", "mean"), [0.5, 0.5], "mean must have a value"),
        ("classification", "config.json", ("pretrained_cfg", "std"), [-1.0], "std must"),
        ("classification", "config.json", ("pretrained_cfg", "crop_pct"), 0, "crop_pct"),
        ("classification", "config.json", ("pretrained_cfg", "crop_mode"), "squash", "crop_mode"),
        ("classification", "config.json", ("pretrained_cfg", "interpolation"), "foo", "interpolation"),
        ("classification", "config.json", ("pretrained_cfg", "input_size"), [3, 8, 8], "has 3 channels"),
        ("classification", "config.json", ("pretrained_cfg", "input_size"), [1, 8], "input_size"),
        ("classification", "config.json", ("pretrained_cfg", "num_classes"), 9, "num_classes is 9"),
        ("classification", "config.json", ("label_names", 1), "0", "'0' twice"),
        ("classification", "config.json", ("model_args", "dims"), [8, 16, 24, 40], "not fit the weights"),
        ("classification", "split.json", ("test", 1), 0, "twice"),
        ("classification", "split.json", ("test",), [], "test is empty"),
        ("classification", "split.json", ("classes",), list("9876543210"), "in another order"),
        ("detection", "config.json", ("detector", "mean"), [1.0] * 2, "mean must have a value"),
        ("detection", "config.json", ("detector", "num_classes"), 7, "num_classes is 7"),
        ("detection", "config.json", ("detector", "architecture"), "retinanet", "do not fit retinanet"),
        ("detection", "config.json", ("detector",), 0, "detector must be a mapping"),
        ("segmentation", "config.json", ("_atconv", "label_names", 1), 0, "twice"),
        ("generation", "transformer/config.json", ("depth",), 1, "not fit the weights"),
        ("generation", "transformer/config.json", ("time_reversed",), "x", "must be true or false"),
        ("generation", "model_index.json", ("prediction",), "noise", "one of them is damaged"),
        ("generation", "model_index.json", ("class_names",), ["a"], "num_classes is"),
        ("generation", "model_index.json", ("vae",), "x", "vae must be a list"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_named_with_its_file(
    copies: dict[str, Path], task: str, name: str, place: tuple[Any, ...], value: Any, words: str
) -> None:
    file, use = copies[task] / name, split_of if name == "split.json" else atconv.load
    original = file.read_bytes()
    content = json.loads(original)
    if isinstance(place[-1], int) and isinstance(value, int):  # as another in the list
        value = list_at(content, place[:-1])[value]
    file.write_text(json.dumps(damaged(content, place, value)))
    try:
        with pytest.raises(ValueError, match=rf"{re.escape(str(file))}.*{re.escape(words)}") as caught:
            use(copies[task])
    finally:
        file.write_bytes(original)
    assert "\n" not in str(caught.value)


def list_at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return content


@pytest.mark.parametrize(
    ("task", "place", "value"),
    [
        ("classification", ("top1",), None),
        ("classification", ("top1",), 101.0),
        ("classification", ("top1_interval",), [1]),
        ("classification", ("per_class",), [1]),
        ("classification", ("per_class", 0, "images"), None),
        ("classification", ("per_class", 0, "class"), "x"),
        ("detection", ("per_class",), 5),
        ("detection", ("coco", "box_map"), "x"),
        ("segmentation", ("miou",), -1),
        ("segmentation", ("per_class", 0, "pixels"), 0.5),
        ("generation", ("val_loss",), "x"),
        ("generation", (), {}),
    ],
    ids=str,
)
def test_damaged_metrics_are_named(
    copies: dict[str, Path], task: str, place: tuple[Any, ...], value: Any
) -> None:
    file = copies[task] / "metrics.json"
    original, predictor = file.read_bytes(), atconv.load(copies[task])
    assert predictor.read_metrics(file)
    content = json.loads(original)
    file.write_text(json.dumps(damaged(content, place, value) if place else value))
    try:
        with pytest.raises(ValueError, match=rf"{re.escape(str(file))} is damaged: "):
            predictor.read_metrics(file)
    finally:
        file.write_bytes(original)


def test_a_folder_in_place_of_a_file_is_named(copies: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(copies["classification"], tmp_path / "run"))
    (run / "metrics.json").unlink()
    (run / "metrics.json").mkdir()
    with pytest.raises(ValueError, match=r"metrics\.json is damaged: it is a folder"):
        atconv.load(run)


@pytest.mark.parametrize(
    "content", [b"epoch\nmany\n", b"layer\nx\n", b"epoch\n\x00\n", b"epoch\n\xff\n", b"epoch,b\n\n,2\n"]
)
def test_a_damaged_table_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is damaged: "):
        read_rows(path, {"epoch": int})


@pytest.mark.parametrize(
    ("task", "name", "use"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: text[:-2],
        lambda text: text[1:],
        lambda text: b"\xff\xfe" + text,
        lambda text: b"\x00" * len(text),
        lambda text: text.replace(b":", b"="),
        lambda text: text + text,
        lambda text: b"[" * 100_000,
        lambda text: b'{"a":' * 100_000,
        lambda text: b"null",
        lambda text: b"NaN",
        lambda text: b"9" * 5000,
    ],
    ids=[
        "empty", "half", "end cut", "start cut", "not UTF-8", "zeros", "no colons", "twice", "deep list",
        "deep mapping", "null", "not a number", "long number",
    ],
)  # fmt: skip
def test_other_bytes_are_named(
    copies: dict[str, Path],
    task: str,
    name: str,
    use: Callable[[Path], object],
    damage: Callable[[bytes], bytes],
) -> None:
    file = copies[task] / name
    check(use, copies[task], file, damage(file.read_bytes()))
