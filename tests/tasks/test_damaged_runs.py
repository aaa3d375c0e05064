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
from hypothesis import HealthCheck, given, settings
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


@pytest.mark.parametrize(
    ("task", "name", "use"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(data=st.data())
def test_a_value_of_another_kind_is_read_or_named(
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
