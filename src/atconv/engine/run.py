"""A run's folder: what lies where, and who may train in it.

runs/NAME/
    config.yaml         the complete, re-runnable configuration
    split.json          which images are in which split
    metrics.csv         one row an epoch       inhibition.csv   λ by layer and epoch
    log.txt             what the run said
    checkpoints/step-N  everything needed to resume
    config.json, model.safetensors             the best model, as timm reads it
    *.png               plots
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

try:
    import fcntl
except ModuleNotFoundError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

__all__ = ["Run", "Runs", "is_skipped_list", "next_run_dir", "run_lock", "run_log", "unique_names"]

Runs = Sequence[str | Path] | Mapping[str, str | Path]
"""folders of runs, with names or without"""

_EVALUATION = ("metrics.json", "per_class.csv", "skipped.csv")
# What runs of every task write, and nothing else does.
_WRITTEN = (
    "config.yaml", "split.json", "log.txt", "checkpoints/step-*/*", "tracking/events.out.*", "metrics.csv",
    "curves.png", "find_lr.csv", "find_lr.png", "config.json", "model.safetensors", *_EVALUATION,
)  # fmt: skip


class Run:
    """The paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.log = path / "config.yaml", path / "log.txt"
        self.split, self.metrics = path / "split.json", path / "metrics.json"
        self.checkpoints, self.lock, self.aside = path / "checkpoints", path / ".lock", path / ".overwritten"
        self.model_config, self.weights = path / "config.json", path / "model.safetensors"

    @classmethod
    def create(cls, path: str | Path, allow_files: bool = False) -> Run:
        """Make the folder of a new run.

        Args:
            allow_files: it may hold files that are no run's.

        Raises:
            ValueError: it exists and is not empty; nothing in it is touched.
        """
        path = Path(path)
        used = path.exists() and (
            not path.is_dir() or not all(map(is_skipped_list, path.iterdir()))  # a rejected run leaves it
        )
        if used and not (allow_files and path.is_dir()):
            run = cls(path)
            ways = run.ways_on if run.config.is_file() else "it is not the folder of a run"
            raise ValueError(f"{path} exists already: {ways}; or name another with --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if path.is_symlink() and not path.exists():
                reason = f"it is a link to {path.readlink()}, which does not exist"
            elif isinstance(error, (FileExistsError, NotADirectoryError)):
                reason = f"{next(each for each in path.parents if each.is_file())} is a file"
            elif isinstance(error, (FileNotFoundError, PermissionError)):
                reason = str(error.strerror)
            else:
                raise
            raise ValueError(f"{path} cannot be made ({reason}): name another with --out") from error
        return cls(path)

    @property
    def ways_on(self) -> str:
        """What a person can do with a run that was started."""
        return f"resume it with --resume {self.path}, or start it again with --out {self.path} --overwrite"

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the folder of a run that was started.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the folder is not a run's.
        """
        run = cls(Path(path))
        if not run.path.is_dir():
            raise FileNotFoundError(f"no such run folder: {run.path}")
        markers = (run.config, run.model_config, run.path / "model_index.json")
        if not any(file.is_file() for file in markers):
            raise ValueError(f"{run.path} is not a run: it has neither config.yaml nor config.json")
        return run

    def check_files(self) -> None:
        """Raise ValueError where a folder stands in place of a file."""
        files = (self.config, self.split, self.metrics, self.model_config, self.weights, self.log)
        for file in files:
            if file.is_dir():
                raise ValueError(f"{file} is damaged: it is a folder, a file is needed")

    def discard(self, kept: Collection[str] = (), keep_folder: bool = False) -> None:
        """Remove what a run that never trained has written, and its folder.

        Args:
            kept: names of files and folders to leave.
            keep_folder: leave the folder even where it is empty: it was there before.
        """
        for child in self.path.iterdir():
            if child.name in kept:
                continue
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink()
        if not keep_folder and not any(self.path.iterdir()):
            self.path.rmdir()

    def set_aside(self, written: Collection[str], evaluation: Collection[str]) -> None:
        """Move what the run has written into a hidden folder in its own, so that another can start there.
        Other files stay as they are.

        Args:
            written: globs of what its task writes besides what all tasks do.
            evaluation: those that evaluations write too, each in its own folder.

        Raises:
            ValueError: another process trains in it.
        """
        self.bring_back()  # what a killed process had set aside
        with run_lock(self):
            in_evaluations = (f"evaluation/*/{name}" for name in (*_EVALUATION, *evaluation))
            patterns = (*_WRITTEN, *written, *evaluation, *in_evaluations)
            for file in [file for pattern in patterns for file in self.path.glob(pattern)]:
                _move(file, self.aside / file.relative_to(self.path), self.path)

    def bring_back(self) -> None:
        """Undo `set_aside`."""
        for file in [file for file in self.aside.rglob("*") if not file.is_dir()]:
            _move(file, self.path / file.relative_to(self.aside), self.path)

    def recover(self) -> None:
        """Undo a `set_aside` that was killed before another run started."""
        if not self.config.is_file():
            self.bring_back()

    def no_model(self) -> ValueError:
        """The error of a run that is opened before there is anything to open."""
        return ValueError(f"{self.path} has no model yet, its first epoch has not finished: {self.ways_on}")

    def read_weights(self) -> dict[str, Tensor]:
        """The weights of the best model.

        Raises:
            ValueError: no epoch has finished, or the file is damaged.
        """
        if not self.model_config.is_file() or not self.weights.is_file():
            raise self.no_model()
        try:
            return load_file(self.weights)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.weights} is damaged: {error}") from error


def is_skipped_list(path: Path) -> bool:
    """Whether a file is the list of images that a run has left out, and not a user's own of that name."""
    if path.name != "skipped.csv" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline(80).strip() == b"split,file,reason"


def _move(file: Path, target: Path, root: Path) -> None:
    """Move a file inside a folder, and remove the folders that are empty then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
    for folder in file.parents:
        if folder == root or any(folder.iterdir()):
            break
        folder.rmdir()


def next_run_dir(data: str, model: str) -> Path:
    """runs/DATA-MODEL, numbered where it exists."""
    name = f"{Path(data).name or 'data'}-{model}"
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1_000_000))
    return next(path for path in candidates if not path.exists())


def unique_names(runs: Runs) -> dict[str, Path]:
    """Runs by the last part of their path, or by more of it where that is not unique; those that have names
    keep them.

    Raises:
        ValueError: a run is named twice.
    """
    if isinstance(runs, Mapping):
        return {name: Path(run) for name, run in runs.items()}
    paths = [Path(run).resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise ValueError(f"a run is named twice: {', '.join(map(str, runs))}")
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    return {"/".join(path.parts[-length:]): Path(run) for path, run in zip(paths, runs, strict=True)}


@contextmanager
def run_lock(run: Run) -> Iterator[None]:
    """Hold a run's folder against another command that trains in it. A killed process lets go of it.

    Raises:
        ValueError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    with run.lock.open("w") as file:
        try:
            # Not flock: data workers would inherit it, and outlive a killed process for seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"{run.path} is being trained by another process: wait for it or end it"
            ) from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            run.lock.unlink(missing_ok=True)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk ends a run as where other files are written, not in a traceback a line."""
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


@contextmanager
def run_log(run: Run) -> Iterator[None]:
    """Append what the package logs to the run's log.txt."""
    package = logging.getLogger("atconv")
    handler, level = _LogFile(run.log, encoding="utf-8", errors="backslashreplace"), package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()
