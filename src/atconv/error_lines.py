"""The line that a command ends with where something is wrong that its user can do something about."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from atconv.tasks import task_for
from atconv.terminal import fail

__all__ = ["explain"]

_OF_WORKER = re.compile(r"Caught (\w+) in DataLoader worker .*^(?:[\w.]+\.)?\1: (.*)", re.S | re.M)
"""what PyTorch raises for an error in a process that loads data: its traceback as text, and the error"""


def explain(command: str, error: Exception) -> None:
    """End with one line that says what was wrong, if it is the kind of error that users can do something
    about."""
    kinds = (ValueError, TypeError, OSError, FloatingPointError, RuntimeError, ImportError, MemoryError)
    if isinstance(error, BrokenPipeError) or not isinstance(error, kinds):
        raise error
    fail(f"atconv {command}: {_reason(error)}{_command_for(error, command)}")


def _reason(error: Exception) -> str:
    text = str(error)
    text = " ".join((found[2] if (found := _OF_WORKER.match(text)) else text).split())
    if "alloc_cpu" in text or "out of memory" in text:  # torch's text is of its own source
        return "not enough memory: a smaller model, smaller images or batches need less"
    if isinstance(error, MemoryError):
        return f"not enough memory: {text or 'smaller sizes need less'}"
    if isinstance(error, PermissionError) and error.filename:
        path = Path(os.fsdecode(error.filename))
        closed = next((folder for folder in reversed(path.parents) if not _allows(folder, os.X_OK)), path)
        if closed != path or (path.exists() and not _allows(path, os.R_OK)):
            return f"{closed} cannot be read ({error.strerror}): allow it to be read, or move it elsewhere"
    if isinstance(error, (FileExistsError, NotADirectoryError)) and error.filename:
        return f"{error.filename} is a file where a folder is needed: give another --out"
    if isinstance(error, IsADirectoryError) and error.filename:
        return f"{error.filename} is a folder where a file is needed"
    full = isinstance(error, OSError) and (error.errno == errno.ENOSPC or "No space left" in text)
    return text + (": free some space; complete checkpoints are untouched" if full else "")


def _allows(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _command_for(error: Exception, command: str) -> str:
    """What fits DATA which a command recognizes as something else than it needs."""
    found, needed = getattr(error, "found", None), getattr(error, "needed", "")  # of an UnfitData
    if found is None or found.annotation in (None, needed):
        return ""
    fitting, tool = task_for(found.annotation), command.split()[-1]
    if tool == "lmdb":
        return ": images in a folder for each class are packed, and nothing else"
    if tool == "check":  # it takes what any task does
        return ""
    if tool not in ("train", "study", "encode"):
        other = f"atconv {fitting.command} {tool}".replace("  ", " ")
        own = task_for(needed).name
        return f"; the run is a {own} run, and `{other}` takes {fitting.name} runs and such data"
    command = f"{fitting.command} train".strip()
    alone = "; to use the images alone, give their folder" if needed == "labels" else ""
    joint = ", and" if found.advice else ":" if needed == "labels" else ", or"
    return f"{joint} use `atconv {command}`{alone}"
