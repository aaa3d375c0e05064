"""Commands in several processes that share the work: as torchrun starts them, and quicker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from support.tiny import Finished, run_command, start_process

__all__ = ["in_processes", "start_processes", "torchrun"]

_SECONDS = 180


def torchrun(*arguments: str) -> Finished:
    """Run `atconv ARGUMENT...` with torch's own launcher, which imports everything twice."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
                "--rdzv-endpoint=localhost:0"]  # fmt: skip
    ended = subprocess.run(
        [*launcher, "-m", "--", "atconv", *arguments],  # after --: torchrun takes --run for one of its own
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    return Finished(ended.returncode, ended.stdout, ended.stderr)


def in_processes(*arguments: str | Path, count: int = 2) -> Finished:
    """Run `atconv ARGUMENT...` in so many processes with the environment that torchrun gives them.

    They are forked from one that has imported the package. Where one fails, the other is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = start_processes(*arguments, output=Path(folder), count=count)
        deadline = time.monotonic() + _SECONDS
        while any(process.is_alive() for process in processes):
            if any(process.exitcode for process in processes) or time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.02)
        codes = [process.exitcode for process in processes]
        out, err = (
            "".join(path.read_text() for path in sorted(Path(folder).glob(f"*/{name}")))
            for name in ("out", "err")
        )
        return Finished(next((code for code in codes if code), 0), out, err)


def start_processes(*arguments: str | Path, output: Path, count: int = 2) -> list[ForkServerProcess]:
    """Start them; their output goes to the files out and err of output/0, output/1, …"""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    texts = [str(argument) for argument in arguments]
    for rank in range(count):
        (output / str(rank)).mkdir()
    return [start_process(_run_rank, texts, output / str(rank), rank, count, port) for rank in range(count)]


def _run_rank(arguments: list[str], output: Path, rank: int, count: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    run_command(arguments, output)
