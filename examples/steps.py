"""What demos share: a command that is printed before it runs, a training that goes on where it stopped."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path


def atconv(*arguments: str) -> None:
    print("\n$ atconv " + shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "atconv.cli", *arguments], check=True)


def train(folder: Path, command: list[str], *options: str) -> None:
    """Train, or go on where an earlier call was interrupted."""
    if folder.exists():
        print(f"{folder} is there already: continuing it (delete it to start over)")
        atconv(*command, "--resume", str(folder))
    else:
        atconv(*command, *options, "--out", str(folder))
