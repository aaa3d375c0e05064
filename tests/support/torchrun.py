"""Commands in several processes."""

from __future__ import annotations

import os
import subprocess
import sys


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
                "--rdzv-endpoint=localhost:0"]  # fmt: skip
    return subprocess.run(
        [
            *launcher,
            "-m",
            "--",
            "atconv",
            *arguments,
        ],  # after --: torchrun takes --run for one of its own
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
    )
