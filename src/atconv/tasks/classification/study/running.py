"""The runs of a study: those that have a row, or that another process has begun, are left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from atconv.engine.devices import available_precision
from atconv.engine.progress import plain_console
from atconv.engine.run import resolve_device
from atconv.io import read_rows, write_atomically
from atconv.tasks.classification.config import ClassificationConfig
from atconv.tasks.classification.study.plan import Study, Variant, macs
from atconv.tasks.classification.study.results import Result, inhibition_of, read_results, write_results
from atconv.tasks.classification.train import resume, train

__all__ = ["run_study"]

_ELSEWHERE = {"data_root", "device", "workers", "tracker"}  # where it runs, not what


def run_study(
    study: Study,
    out: Path,
    console: Console | None = None,
    jobs: Sequence[tuple[Variant, int]] | None = None,
) -> Path:
    """Train and test every variant that has no row yet.

    Several processes may work on one folder, one for each device or core: each takes the next run that none
    of the others has.

    Args:
        study: from `read_study`.
        out: folder with a run for each job, and results.csv.
        console: where progress shows.
        jobs: only these variants and seeds.

    Returns:
        results.csv.

    Raises:
        ValueError: the folder holds runs of another recipe.
        FloatingPointError: the loss of some runs was not finite; all others have ended.
    """
    console, table = console or plain_console(), out / "results.csv"
    out.mkdir(parents=True, exist_ok=True)
    console.print("matching the widths of all variants")  # a minute for twenty
    _keep_recipe(study, out)
    _keep_precision(study, table)
    elsewhere, diverged = 0, []
    for variant, seed in study.jobs if jobs is None else jobs:
        run = out / "runs" / f"{variant.folder}-{seed}"
        run.parent.mkdir(exist_ok=True)
        try:
            with FileLock(run.with_name(f"{run.name}.lock"), timeout=0):
                if not _has_row(table, variant, seed):
                    console.print(f"{variant.name}, seed {seed}: {run}", soft_wrap=True)
                    _run(study, variant, seed, run)
                    _add_row(table, study, variant, seed, run)
        except Timeout:
            elsewhere += 1
        except FloatingPointError as error:  # it would do so again: the others shall not wait for it
            diverged.append(f"{variant.name}, seed {seed}: {error}")
            console.print(diverged[-1], soft_wrap=True)
    if elsewhere:
        console.print(f"{elsewhere} of the runs were left to other processes: their rows come when they end")
    if diverged:
        raise FloatingPointError(f"{len(diverged)} runs have no row. {'; '.join(diverged)}")
    return table


def _has_row(table: Path, variant: Variant, seed: int) -> bool:
    return any(result.run == (variant.name, seed) for result in read_results(table))


def _run(study: Study, variant: Variant, seed: int, run: Path) -> None:
    if (run / "config.yaml").is_file():
        resume(run)
    else:
        train(study.config(variant, seed), run)


def _add_row(table: Path, study: Study, variant: Variant, seed: int, run: Path) -> None:
    measured = json.loads((run / "metrics.json").read_text())
    result = Result(
        variant.name,
        seed,
        measured["top1"],
        study.parameters(variant, study.widths[variant.name]),
        macs(study, variant),
        round(sum(float(epoch["seconds"]) for epoch in read_rows(run / "metrics.csv"))),
        _told(study.widths[variant.name]),
        _precision(study),
        *inhibition_of(run),
    )
    with FileLock(run.parent / "results.lock"):
        write_results(table, [*read_results(table), result])


def _precision(study: Study) -> str:
    """That this machine trains in."""
    return available_precision(study.recipe.precision, resolve_device(study.recipe.device).type)


def _keep_precision(study: Study, table: Path) -> None:
    """Raises:
    ValueError: the table's rows were trained in another precision than this machine's.
    """
    here, before = _precision(study), {result.precision for result in read_results(table)}
    if before - {here}:
        raise ValueError(
            f"{table} has rows trained in {' and '.join(sorted(before))}, this machine trains in {here}: "
            "go on where those were made, or begin another folder with --out"
        )


def _keep_recipe(study: Study, out: Path) -> None:
    """Rows of one table come from one recipe: it lies beside them and is compared with.

    Raises:
        ValueError: the folder was begun with another one.
    """
    path, results = out / "recipe.json", read_results(out / "results.csv")
    recipe = {name: value for name, value in asdict(study.recipe).items() if name not in _ELSEWHERE}
    told = json.loads(json.dumps(recipe))  # tuples become lists, as in the file
    mixers = {v.name: {"token_mixer": v.token_mixer, "mixer_args": v.mixer_args} for v in study.variants}
    if path.is_file() and (results or next(out.glob("runs/*/config.yaml"), None)):
        before = _read_recipe(path)
        defaults = {f.name: f.default for f in fields(ClassificationConfig)}  # of fields that are new since
        changes = _changes(json.loads(json.dumps(defaults, default=str)) | before["recipe"], told)
        changes += _changes(before["variants"], mixers, before["variants"])
        rows = {result.variant: result.widths for result in results}
        widths = {name: _told(found) for name, found in study.widths.items()} if rows else {}
        changes += _changes(rows, widths, rows)
        if changes:
            raise ValueError(
                f"{out} was begun with another recipe ({', '.join(changes)}): name another folder with --out"
            )
        mixers = before["variants"] | mixers
    text = json.dumps({"recipe": told, "variants": mixers}, indent=1, ensure_ascii=False)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _read_recipe(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"recipe": dict(found["recipe"]), "variants": dict(found["variants"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the recipe of a study: {error!r}; name another folder with --out"
        ) from error


def _told(widths: Sequence[int]) -> str:
    return " ".join(map(str, widths))


def _changes(before: dict[str, Any], now: dict[str, Any], names: Iterable[str] | None = None) -> list[str]:
    asked = now if names is None else [name for name in names if name in now]
    return [f"{name}: {before.get(name)} → {now[name]}" for name in asked if before.get(name) != now[name]]
