"""Configurations as files: the recipes that ship with a task, and the one a run keeps."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import yaml

from atconv.engine.options import NonNegativeInt, check_value, did_you_mean
from atconv.engine.reading import read_yaml
from atconv.engine.run import Run
from atconv.io import write_atomically

__all__ = [
    "continued_config",
    "read_config",
    "read_extended_at",
    "read_options",
    "read_recipe",
    "write_config",
]

T = TypeVar("T")
_EXTENDED = "extended_at"  # in config.yaml, besides the options
_WHERE = ("data_root", "device", "workers", "tracker")  # say where a run is made, not what is made


def read_recipe(path: Path, kind: type, task: str) -> dict[str, Any]:
    """The options in a recipe of one task, checked.

    Raises:
        ValueError: it is of another task, or has an option or a value that `kind` does not know.
    """
    recipe = read_yaml(path)
    if not isinstance(recipe, dict):
        raise ValueError(f"the recipe {path} is not a mapping of options to values")
    named, _ = recipe.pop("task", task), recipe.pop(_EXTENDED, 0)
    if named != task:
        raise ValueError(f"the recipe {path} is one of {named}, not of {task}")
    hints = get_type_hints(kind, include_extras=True)
    for option, value in recipe.items():
        if option not in hints:
            hint = did_you_mean(option, hints)
            raise ValueError(f"the recipe {path} has an option {option} that {task} does not{hint}")
        check_value(f"{option} in the recipe {path}", value, hints[option])
    return recipe


def write_config(config: Any, task: str, run: Run, extended_at: int = 0) -> None:
    """Save the task of a run and its complete configuration (a dataclass), re-runnable with
    --config RUN/config.yaml, and the epoch that it was extended at."""
    plain: dict[str, Any] = {"task": task} | ({_EXTENDED: extended_at} if extended_at else {})
    plain |= {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    write_atomically(
        run.config, lambda temporary: temporary.write_text(yaml.safe_dump(plain, sort_keys=False))
    )


def read_options(run: Run) -> dict[str, Any]:
    """The options in a run's config.yaml.

    Raises:
        ValueError: it is damaged.
    """
    options = read_yaml(run.config)
    if not isinstance(options, dict):
        raise ValueError(f"{run.config} is damaged: options by name are expected, got {str(options)[:80]!r}")
    return options


def read_config(run: Run, kind: type[T], task: str) -> T:
    """The configuration of a run of one task.

    Raises:
        ValueError: the run is of another task, or its config.yaml is damaged.
    """
    options = read_options(run)
    named, _ = options.pop("task", task), options.pop(_EXTENDED, 0)
    if named != task:
        raise ValueError(f"{run.path} is a {named} run; a {task} run is needed here")
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in (name for name in options if name not in known):
        hint = did_you_mean(name, known)
        raise ValueError(f"{run.config} is damaged: {task} has no option {name!r}{hint}")
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{run.config} is damaged: {error}") from error


def continued_config(run: Run, config: T, task: str) -> T:
    """The configuration that a run was begun with, to continue it where `config` says: on its device, say.

    Raises:
        ValueError: the run was begun with another recipe; its config.yaml is damaged.
    """
    begun: Any = read_config(run, type(config), task)
    before, now = asdict(begun), asdict(config)  # type: ignore[call-overload]
    found = {"lr": now["find_lr"], "batch_size": now["auto_find_batch_size"]}  # by a search, which is over
    searched = {"find_lr", "auto_find_batch_size", *(name for name, asked in found.items() if asked)}
    changed = [name for name in now if name not in (*_WHERE, *searched) and before[name] != now[name]]
    if changed:
        changes = ", ".join(f"{name}: {before[name]} → {now[name]}" for name in changed)
        raise ValueError(
            f"{run.path} was begun with another recipe ({changes}): name another folder with --out"
        )
    return cast(T, replace(begun, **{name: now[name] for name in _WHERE if name in now}))


def read_extended_at(run: Run) -> int:
    """The epoch that a run was last extended at; 0 where it never was.

    Raises:
        ValueError: config.yaml is damaged.
    """
    epoch: int = read_options(run).get(_EXTENDED, 0)
    check_value(f"{_EXTENDED} in {run.config}", epoch, NonNegativeInt)
    return epoch
