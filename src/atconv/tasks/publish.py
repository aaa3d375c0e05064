"""`atconv publish`: a run's model as a folder or repository that others open, with a model card."""

from __future__ import annotations

import json
import logging
import ntpath
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from atconv.data.folders import SPLITS
from atconv.data.saved_split import read_split
from atconv.engine.recipes import read_options
from atconv.engine.run import Run
from atconv.io import first_few, write_rows
from atconv.tasks import TASKS, get_task, load, open_run, task_of
from atconv.tasks.model_card import CardContent, model_card
from atconv.tasks.spec import TaskSpec

__all__ = ["publish"]

logger = logging.getLogger(__name__)

_HUB = "hub:"
_OWN = ("README.md", "recipe.yaml", "per_class.csv")
_OF_THIS_MACHINE = ("data", "data_root", "images")  # options that say where DATA lies


def publish(
    run: str | Path,
    to: str,
    license: str | None = None,
    dataset: str | None = None,
    with_images: bool = False,
    private: bool = False,
    overwrite: bool = False,
) -> str:
    """Publish a run's best model with a model card: data, metrics, limits, how to train it again.

    timm, transformers, smp or diffusers open it, depending on the task, and so does `atconv.load`. Paths of
    this machine and images of the data are left out.

    Args:
        run: the run's folder.
        to: a folder, or hub:USER/NAME for a repository on Hugging Face.
        license: of the weights, by Hugging Face's name, such as apache-2.0; needed for a repository.
        dataset: name of the data in the card, USER/NAME for a data set on Hugging Face; default: the name of
            the run's DATA.
        with_images: include plots that show images of the data, such as the worst mistakes.
        private: make the repository private.
        overwrite: replace the files of an earlier publication.

    Returns:
        the folder, or the address of the repository.

    Raises:
        FileNotFoundError, ValueError: it is not a run, has no model yet, or the folder is not empty.
        RuntimeError: Hugging Face rejects it or does not answer.
    """
    folder, spec = open_run(run), task_of(open_run(run))
    repository = to.removeprefix(_HUB) if to.startswith(_HUB) else None
    _check(folder, to, repository, license, private, overwrite)
    name = repository or folder.path.resolve().name
    parent = None if repository else Path(to).absolute().parent
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publishing-", dir=parent) as temporary:
        staging = Path(temporary) / "model"
        _write(folder, spec, staging, name, license, dataset, with_images)
        load(staging)  # it opens
        if repository:
            from atconv.tasks.hub import upload

            place = upload(staging, repository, private, overwrite)
        else:
            place = str(_move(staging, Path(to)))
    if license is None:
        logger.warning("the license in README.md is to be filled in, or give --license")
    logger.info("published to %s", place)
    return place


def _check(
    run: Run, to: str, repository: str | None, license: str | None, private: bool, overwrite: bool
) -> None:
    """Fail fast."""
    if repository is not None:
        from atconv.tasks.hub import check_repository

        check_repository(repository)
        if license is None:
            raise ValueError("a repository needs --license, such as apache-2.0, mit or cc-by-4.0")
        return
    if private:
        raise ValueError(f"private is for hub:USER/NAME, got --to {to}: leave one of them out")
    folder = Path(to)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder to write to")
    if folder.resolve() == run.path.resolve():
        raise ValueError(f"{folder} is the run itself: name another folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(
            f"{folder} is not empty: give --overwrite to replace a model there, or another folder"
        )


def _write(
    run: Run,
    spec: TaskSpec,
    folder: Path,
    name: str,
    license: str | None,
    dataset: str | None,
    with_images: bool,
) -> None:
    """All files of a publication."""
    predictor, about = load(run.path), spec.publication
    metrics = predictor.read_metrics(run.metrics) if run.metrics.is_file() else {}
    plots = {**about.plots, **(about.image_plots if with_images else {})}
    for pattern in (*about.files, *plots):
        for file in run.path.glob(pattern):
            target = folder / file.relative_to(run.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(file, target)
    if metrics.get("per_class"):
        write_rows(folder / "per_class.csv", metrics["per_class"])
    options = read_options(run) if run.config.is_file() else {}
    recipe = {name: _portable(value) for name, value in options.items() if name not in _OF_THIS_MACHINE}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    card = model_card(
        CardContent(
            spec=replace(spec, publication=predictor.publication(about)),
            name=name,
            license=license,
            dataset=dataset or _data_name(str(options.get("data") or "")),
            classes=predictor.classes,
            parameters=sum(p.numel() for p in predictor.model.parameters()),
            recipe=recipe,
            sizes=_split_sizes(run),
            metrics=metrics,
            evaluations=[
                (file.parent.name, predictor.read_metrics(file))
                for file in sorted((run.path / "evaluation").glob("*/metrics.json"))
            ],
            plots={file: title for file, title in plots.items() if (folder / file).is_file()},
        )
    )
    (folder / "README.md").write_text(card.content, encoding="utf-8", errors="backslashreplace")


def _copy(file: Path, target: Path) -> None:
    """A file as it is; diffusers notes in JSON where a model was read from, which is left out."""
    if file.suffix != ".json":
        shutil.copyfile(file, target)
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _portable(value: Any) -> Any:
    """A value with paths of this machine as names alone."""
    if isinstance(value, dict):
        return {name: _portable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(each) for each in value]
    if isinstance(value, str) and value:
        here = os.path.isabs(value) or ntpath.isabs(value) or value[0] in "~." or Path(value).exists()
        return ntpath.basename(value.rstrip("/\\")) if here else value
    return value


def _data_name(data: str) -> str:
    """What DATA is called: a name of timm's without its prefix, or that of a file or folder."""
    for prefix in ("hfds/", "torch/"):
        if data.startswith(prefix):
            return data.removeprefix(prefix)
    return ntpath.basename(data.rstrip("/\\")) or "unnamed data"


def _split_sizes(run: Run) -> dict[str, int]:
    """Images of each split, where the run has recorded them."""
    saved = read_split(run.split) if run.split.is_file() else {}
    return {name: len(saved[name]) for name in SPLITS if name in saved}


def _move(staging: Path, folder: Path) -> Path:
    """Put the files in place, and remove those that an earlier publication has besides."""
    publications = [get_task(task).publication for task in TASKS]
    patterns = {*_OWN, *(p for each in publications for p in (*each.files, *each.plots, *each.image_plots))}
    replaced = [file for pattern in patterns for file in folder.glob(pattern)]
    files = [file.relative_to(staging) for file in sorted(staging.rglob("*")) if file.is_file()]
    stale = [file for file in replaced if file.relative_to(folder) not in files]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / file, folder / file)
    for file in stale:
        file.unlink()
    if stale:
        logger.info("removed from %s: %s", folder, first_few([file.name for file in stale]))
    return folder
