"""split.json of a run, and of a folder of latents: which images are in which split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from atconv.data.folders import SPLITS
from atconv.engine.reading import naming_damage, read_json
from atconv.engine.run import Run

__all__ = ["read_split"]

_SCHEMA: dict[str, Any] = {
    "train": list[str],
    "val": list[str],
    "test": list[str] | None,
    "classes": list[str] | None,
    "message": str | None,
    "annotations": dict[str, str] | None,
    "digests": dict[str, list[str]] | None,
}


def read_split(path: Path, *needed: str) -> dict[str, Any]:
    """The names of the images of each split, and what else the file says.

    Args:
        needed: what else must be there: classes and message, or annotations.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged: a value of another type, an empty split, a name twice.
    """
    types = {"classes": list[str], "message": str, "annotations": dict[str, str]}
    saved = read_json(path, _SCHEMA | {name: types[name] for name in needed})
    splits = [name for name in SPLITS if name in saved]
    with naming_damage(path):
        for name in (*splits, *(["classes"] if "classes" in saved else [])):
            _check_names(name, saved[name])
        for part in (part for part in ("digests", "annotations") if part in saved):
            if {*saved[part]} != {*splits}:
                raise ValueError(f"{part} has other splits than {', '.join(splits)}")
        for name, digests in saved.get("digests", {}).items():
            if len(digests) != len(saved[name]):
                raise ValueError(f"digests of {name} are not one for each image")
    if "classes" in saved:
        _check_class_order(Run(path.parent), saved["classes"])
    return saved


def _check_class_order(run: Run, classes: list[str]) -> None:
    """Raise ValueError where the model of a run was trained on other classes than its split.json names, or on
    them in another order."""
    for file, key in ((run.model_config, "label_names"), (run.path / "model_index.json", "class_names")):
        names = read_json(file, {key: list[str] | None}).get(key) if file.is_file() else None
        if names and names != classes:
            raise ValueError(
                f"{run.split} and {file} name other classes, or in another order: one of them is damaged"
            )


def _check_names(what: str, names: list[str]) -> None:
    if not names:
        raise ValueError(f"{what} is empty")
    if len({*names}) < len(names):
        [(twice, _)] = Counter(names).most_common(1)
        raise ValueError(f"{what} has {twice!r} twice")
