from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atconv.engine import checkpoint
from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from atconv.io import save_tensors, write_atomically


def same(a: Any, b: Any) -> bool:
    """Equal in value, type and, for tensors, dtype and shape; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


STATE: dict[str, Any] = {
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0)}, 1: {}},
        "param_groups": [{"betas": (0.9, 0.999)}],
    },
    "half": torch.arange(6).reshape(2, 3).to(torch.bfloat16),
    "count": torch.tensor(5),
    "empty": torch.empty(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "nothing": None,
    "flags": [True, 1, 1.5, "one", math.inf, -0.0],
    "nested": ((), [], {}, ({"a": None},)),
}


def test_a_nested_state_comes_back_with_its_types(tmp_path: Path) -> None:
    assert same(load_checkpoint(save_checkpoint(tmp_path, 1, STATE)), STATE)


def tensors() -> st.SearchStrategy[Tensor]:
    dtypes = st.sampled_from(
        [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
    )
    shapes = st.lists(st.integers(0, 3), max_size=3)
    return st.builds(
        lambda shape, dtype: torch.arange(math.prod(shape)).reshape(shape).to(dtype), shapes, dtypes
    )


def states() -> st.SearchStrategy[dict[Any, Any]]:
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | names | tensors()
    # Without "/" and digits: see the test of similar keys below.
    keys = st.integers() | st.text(
        st.characters(exclude_categories=["Cs", "Nd"], exclude_characters="/"), max_size=5
    )

    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        lists = st.lists(inner, max_size=3)
        return lists | lists.map(tuple) | st.dictionaries(keys, inner, max_size=3)

    return st.dictionaries(keys, st.recursive(leaves, deeper, max_leaves=10), max_size=4)


@settings(deadline=None, max_examples=60)
@given(states())
def test_any_nested_state_comes_back(state: dict[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert same(load_checkpoint(save_checkpoint(Path(folder), 0, state)), state)


@pytest.mark.parametrize(
    "state",
    [
        {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}},
        {1: torch.zeros(1), "1": torch.ones(1)},
    ],
    ids=["slash", "number and text"],
)
def test_tensors_under_similar_keys_are_kept_apart(tmp_path: Path, state: dict[Any, Any]) -> None:
    assert same(load_checkpoint(save_checkpoint(tmp_path, 0, state)), state)


def test_a_tensor_may_stand_in_two_places(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    state = {"weight": shared, "tied": shared, "part": shared[:2]}
    assert same(load_checkpoint(save_checkpoint(tmp_path, 0, state)), state)


@pytest.mark.parametrize("value", [np.zeros(2), object(), {1, 2}, b"bytes"], ids=lambda v: type(v).__name__)
def test_what_cannot_be_saved_is_rejected_before_anything_is_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match=f"cannot hold a {type(value).__name__}.*/a/0"):
        save_checkpoint(tmp_path, 1, {"a": [value]})
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_is_the_one_with_the_greatest_number(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-100", "step-99", ".writing-step-500", "step-1000.old", "steps"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-100"


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_without_a_checkpoint_there_is_no_newest(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    assert latest_checkpoint(tmp_path / folder) is None


def test_a_new_checkpoint_replaces_older_and_incomplete_ones(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    (tmp_path / ".writing-step-2").mkdir()
    (tmp_path / ".writing-step-2" / "state.json").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    newest = save_checkpoint(tmp_path, 2, {"step": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "step-2"]
    assert load_checkpoint(newest) == {"step": 2}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, 7, {"weights": torch.arange(100.0), "epoch": 3, "best": [1.5, -2.0]})


def damages() -> Iterator[Any]:
    for name in ("state.safetensors", "state.json"):
        for share in (0.0, 0.1, 0.5, 0.99):
            yield pytest.param(name, share, id=f"{name} cut at {share:.0%}")


@pytest.mark.parametrize(("name", "share"), damages())
def test_a_truncated_checkpoint_is_called_damaged(saved: Path, name: str, share: float) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"step-7 is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_checkpoint_without_one_of_its_files_is_called_damaged(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ValueError, match=r"step-7 is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "text", [b"[]", b"3", b"null", b'{"list": []}', b'{"dict": [["a", {"tensor": "no such"}]]}'], ids=repr
)
def test_a_checkpoint_of_another_make_is_called_damaged(saved: Path, text: bytes) -> None:
    (saved / "state.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"step-7 is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "text", [b"{}", b'{"dict": 1}', b'{"dict": [["a"]]}', b'{"dict": [], "list": []}', b"\xff"], ids=repr
)
def test_a_checkpoint_of_another_structure_is_called_damaged(saved: Path, text: bytes) -> None:
    (saved / "state.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"step-7 is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_where_writing_fails_the_older_checkpoint_stays(saved: Path, monkeypatch: Any, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, call, full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved.parent, 8, {"weights": torch.arange(100.0)})
    assert [p.name for p in saved.parent.iterdir()] == ["step-7"]
    assert load_checkpoint(saved)["epoch"] == 3


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, half)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]
    assert path.read_text() == "old"


def test_tensors_of_an_unwritable_place_give_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"."):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "no such folder" / "model.safetensors")
    assert not list(tmp_path.iterdir())
