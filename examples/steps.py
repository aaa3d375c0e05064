"""What demos share: a command that is printed before it runs, a training that continues where it stopped."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def atconv(*arguments: str) -> None:
    print("\n$ atconv " + shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "atconv", *arguments], check=True)


def python(module: str, *arguments: str) -> None:
    """Run a module of this checkout that is not part of the package."""
    print(f"\n$ python -m {module} {shlex.join(arguments)}", flush=True)
    path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, env=environment)


def train(folder: Path, command: list[str], *options: str) -> None:
    """Train, or continue where an earlier call was interrupted."""
    if folder.exists():
        print(f"{folder} is there already: continuing it (delete it to start over)")
        atconv(*command, "--resume", str(folder))
    else:
        atconv(*command, *options, "--out", str(folder))
