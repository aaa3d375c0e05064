"""Files written completely or not at all: a kill at any moment leaves the old content or the new."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "check_file",
    "check_target",
    "count_of",
    "escape_controls",
    "escape_row",
    "file_digest",
    "first_few",
    "flush",
    "read_bytes",
    "read_rows",
    "save_tensors",
    "write_atomically",
    "write_json",
    "write_rows",
    "write_tensors",
]

_CONTROLS = r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"


def check_file(path: str | Path) -> None:
    """Raise OSError where there is a pipe, socket or device instead of a file: reading it may never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        error = OSError(f"{path} is a pipe, socket or device, and only files are read")
        error.strerror = "it is a pipe, socket or device"
        raise error


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it cannot be read, or is none; see `check_file`.
    """
    check_file(path)
    return path.read_bytes()


def check_target(folder: Path, marker: str, what: str) -> None:
    """Raise ValueError unless a folder to write to is new, empty, or has the file of an earlier `what`."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise ValueError(f"{folder} holds something that is no {what}: name another folder with --out")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file next to `path`, then put it in place in one step."""
    temporary = path.with_name(f".writing-{path.name}")
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file in place of `path`, atomically."""
    write_atomically(path, lambda temporary: write_tensors(tensors, temporary))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in place of `path`, atomically."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV in UTF-8, in place of the file, atomically. The first row names the columns; bytes of
    file names that are not UTF-8 are escaped, and control characters."""
    if not rows:
        return

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(dict(zip(row, escape_row(row.values()), strict=True)) for row in rows)

    write_atomically(path, write)


def read_rows(path: Path, columns: Mapping[str, Callable[[str], Any]] | None = None) -> list[dict[str, Any]]:
    """Rows of a CSV file; none where it is not there.

    Args:
        columns: those that each row must have, and what makes a value of their text.

    Raises:
        ValueError: it is no such table; the message names the line.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        for line, row in enumerate(rows, 2):
            for name, make in (columns or {}).items():
                try:
                    row[name] = make(row[name])
                except (KeyError, TypeError, ValueError):
                    got = repr(row.get(name))[:50]
                    raise ValueError(f"line {line} has no usable {name}, but {got}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return rows


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(_separate(tensors), path)
        os.chmod(path, 0o666 & ~_umask())  # safetensors leaves it to the owner alone
    except SafetensorError as error:  # safetensors hides the operating system's reason in its text
        raise OSError(str(error)) from error


def escape_controls(text: str, kept: str = "") -> str:
    """Text in one line: control characters of terminals and of bidirectional text, such as those in names of
    files, are escaped, but for those that are `kept`."""
    return re.sub(_CONTROLS, lambda m: m[0] if m[0] in kept else m[0].encode("unicode_escape").decode(), text)


def escape_row(row: Iterable[Any]) -> list[Any]:
    """Values of a row in one line."""
    return [escape_controls(value) if isinstance(value, str) else value for value in row]


def count_of(count: int, noun: str, plural: str | None = None) -> str:
    """1 image, 2 images."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def first_few(items: Sequence[str], separator: str = ", ", count: int = 5) -> str:
    """The first of them in one line, and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return separator.join(escape_row(items[:count])) + more


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)  # there is no other way to read it
    os.umask(mask)
    return mask


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, which safetensors does not write."""
    separate = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
