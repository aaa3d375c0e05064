"""Checkpoints: safetensors and JSON in one folder, written under another name and renamed.

A kill at any moment leaves the previous checkpoint or the new one, never half of one: a folder
`step-N` exists only once everything in it is on disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from atconv.io import flush, write_tensors

__all__ = [
    "latest_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]

_TENSORS = "state.safetensors"
_REST = "state.json"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a nested state of dicts, lists, tuples, tensors, numbers, strings and None.

    Checkpoints of other steps are removed once the new one is in place.

    Args:
        folder: the run's checkpoint folder, made if missing.
        step: optimizer step, names the checkpoint.

    Returns:
        the checkpoint's folder, `folder/step-N`.

    Raises:
        OSError: it could not be written (full disk, no permission); checkpoints there are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step}"
    if not target.exists():
        temporary = folder / f".writing-step-{step}"
        shutil.rmtree(temporary, ignore_errors=True)
        tensors: dict[str, Tensor] = {}
        rest = json.dumps(_pack(state, "", tensors))
        try:
            temporary.mkdir()
            write_tensors(tensors, temporary / _TENSORS)
            (temporary / _REST).write_text(rest)
            for file in (temporary / _TENSORS, temporary / _REST, temporary):
                flush(file)
            os.rename(temporary, target)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush(folder)
    for other in folder.iterdir():
        if other != target and re.fullmatch(r"(\.writing-)?step-\d+", other.name):
            shutil.rmtree(other, ignore_errors=True)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a run's checkpoint folder, or None."""
    if not folder.is_dir():
        return None
    complete = [child for child in folder.iterdir() if re.fullmatch(r"step-\d+", child.name)]
    return max(complete, key=lambda child: int(child.name[5:]), default=None)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote. Nothing is unpickled.

    Raises:
        ValueError: a file in it is missing or damaged.
    """
    try:
        tensors = load_file(path / _TENSORS)
        state = _unpack(json.loads((path / _REST).read_text(encoding="utf-8")), tensors)
        if not isinstance(state, dict):
            raise ValueError("its state is not a mapping")
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged ({error}); delete that folder to resume from an older one, if any"
        ) from error
    return state


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`; its tensors go to `tensors` under the names that stand in for them."""
    if isinstance(value, Tensor):
        unique = f"{len(tensors):05d}{name}"
        tensors[unique] = value
        return {"tensor": unique}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return {type(value).__name__: items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} (at {name or 'the top'})")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
