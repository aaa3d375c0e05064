"""All speed tables in one go.

    make bench            # every measurement that has no result yet; stop it and start it as you like
    make bench-quick      # a few ratios in three to four minutes

Run it on an otherwise idle machine. Results lie in benchmarks/results/MACHINE/, one file a measurement;
delete those that are to be measured again. MACHINE.md next to the folder is written from them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from commands import commands
from deployed import deployed
from inference import compiled, eager
from machine import dtypes, machine_line, machine_name
from operators import operators
from quick import print_ratios
from report import write_report
from sizes import sizes
from training import memory, seconds

RESULTS = Path(__file__).parent / "results"


def jobs() -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """Every measurement by the name of its file."""
    every: dict[str, Callable[[], list[dict[str, Any]]]] = {}
    for dtype in dtypes():
        kind = str(dtype).removeprefix("torch.")
        every |= {
            f"eager-8-{kind}": partial(eager, dtype, 8),
            f"eager-1-{kind}": partial(eager, dtype, 1),
            f"memory-{kind}": partial(memory, dtype),
            f"operators-{kind}": partial(operators, dtype),
        }
    every |= {"commands": commands, "sizes": sizes, "deployed": deployed}
    for dtype in dtypes():  # the compiler takes minutes
        kind = str(dtype).removeprefix("torch.")
        every |= {
            f"compiled-8-{kind}": partial(compiled, dtype, 8),
            f"training-{kind}": partial(seconds, dtype, compile=True),
        }
    return every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="print a few ratios, write nothing")
    parser.add_argument("--report", action="store_true", help="write the tables of what is there")
    arguments = parser.parse_args()
    line, folder = machine_line(), RESULTS / machine_name()
    print(line)
    if arguments.quick:
        print_ratios()
        return
    torch.compiler.config.force_disable_caches = True  # the time it takes is reported
    folder.mkdir(parents=True, exist_ok=True)
    for name, job in {} if arguments.report else jobs().items():
        path = folder / f"{name}.json"
        if path.exists():
            continue
        print(f"{name} …", flush=True)
        started = time.perf_counter()
        torch.compiler.reset()
        rows = job()
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"machine": line, "rows": rows}, indent=1) + "\n")
        unfinished.replace(path)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    print(f"written: {write_report(folder)}")


if __name__ == "__main__":
    main()
