"""Data sets that the studies and demos are made on, each a command: python -m studies.datasets.NAME."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from jsonargparse import auto_cli

__all__ = ["run_command"]


def run_command(build: Callable[..., Path]) -> None:
    """Call `build` with arguments from the command line. Wrong input ends with one line and exit code 2."""
    try:
        print(f"written to {auto_cli(build)}")
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
