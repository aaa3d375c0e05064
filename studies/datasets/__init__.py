"""Data sets that the studies and demos are made on, each a command: python -m studies.datasets.NAME."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jsonargparse import auto_cli

from atconv.terminal import fail

__all__ = ["run_command"]


def run_command(build: Callable[..., Path]) -> None:
    """Call `build` with arguments from the command line. Wrong input ends with one line and exit code 2."""
    try:
        print(f"written to {auto_cli(build)}")
    except (FileNotFoundError, ValueError) as error:
        fail(str(error))
