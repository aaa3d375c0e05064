"""Everything that is to be known on a GPU, in eight minutes.

    make gpu                                   # all parts, the most valuable first
    python benchmarks/gpu.py --parts kernels   # one part
    python benchmarks/gpu.py --trial           # every line, tiny, on any machine: no numbers

A part writes PART.json into benchmarks/results/GPU/ after each row, ends when its time is up, and measures
only what this code on this machine has not measured yet: start it again for the rest. Rows that failed say
why, and are tried again once all others were tried. A table of all is printed last and written as table.md;
it marks rows of other code and machines.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from gpu_timing import Row, Setup, measured

__all__ = ["main"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SECONDS = {
    "tests": 90,
    "kernels": 80,
    "backbones": 130,
    "generators": 90,
    "loop": 40,
    "tiles": 40,
    "tuned": 60,
}
"""parts, the most valuable first, and the time of each"""
COMPILED = {
    "backbones": (
        "AttNet-T2(?!.*all kernels).*inference",
        "AttNet-T2(?!.*all kernels).*training",
        "AttNet-T2, inference.*all kernels",
        "AttNet-T2, training.*all kernels",
        "ConvNeXt-T, inference",
        "ConvNeXt-T, training",
    ),
    "generators": ("sit_xl", "sit_atconv_xl"),
}
"""what is compiled side by side, by part and the beginnings of rows"""
GRACE = 30  # for what a part has begun when its time is up
GRID = "tests/ops/test_triton_grid.py"
TESTS = (
    "tests/ops/test_triton_conv.py",
    "tests/ops/test_triton_modules.py",
    "tests/ops/test_triton_channels.py",
    "tests/ops/test_gated_unit.py",
    "tests/engine/test_trainer_on_devices.py",
    f"{GRID} -k bfloat16-K3",
    f"{GRID} -k pooling",
    f"{GRID} -k 'float32-K3 or (float16-K3 and not bfloat16)'",
    f"{GRID} -k 'K5 or K7'",
    f"{GRID} -k 'not every_map'",
)
"""arguments of pytest; what the grid tests is compiled a thousand times, so each row is a part of it"""
# Whose rows a change makes old: what is measured, and how.
CODE = (
    *("src/atconv/" + name for name in ("ops", "mixers", "models", "deploy", "diffusion", "engine", "data")),
    *("src/atconv/functional.py", "src/atconv/modules.py", "tests/ops", "tests/support"),
    *("benchmarks/" + name for name in ("gpu_kernels.py", "gpu_loop.py", "gpu_models.py", "gpu_timing.py")),
    *("benchmarks/loading.py", "benchmarks/plain.py", "tests/engine/test_trainer_on_devices.py"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS), metavar="PART")
    parser.add_argument("--results", type=Path, help="folder of the results; default: named after the GPU")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together")
    parser.add_argument("--trial", action="store_true", help="every line, tiny, on any machine")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compile-only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.trial:
        raise SystemExit("gpu.py: PyTorch sees no CUDA GPU here; --trial runs every line without one")
    folder = arguments.results or (Path(tempfile.mkdtemp()) if arguments.trial else RESULTS / _gpu_name())
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.in_process:
        (part,) = arguments.parts
        if arguments.compile_only:
            _compile(part, arguments.compile_only, folder)
        else:
            _measure(part, folder, arguments.seconds, arguments.trial)
        return
    until = time.monotonic() + arguments.seconds
    for part in arguments.parts:
        seconds = min(SECONDS[part], until - time.monotonic())
        if seconds > 5:
            # Tests are not timed: compilers work meanwhile, so that measuring finds their results.
            ahead = _compile_ahead(folder) if part == "tests" and not arguments.trial else []
            ends = time.monotonic() + seconds
            _run(part, folder, seconds, arguments.trial)
            for process in ahead:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, ends - time.monotonic()))
                process.kill()
    table = "\n".join(_table(folder))
    (folder / "table.md").write_text(table + "\n")
    print(table)


def _compile_ahead(folder: Path) -> list[subprocess.Popen[bytes]]:
    """Processes that call the compiled models once each, for torch's cache on disk."""
    command = [sys.executable, __file__, "--in-process", "--results", str(folder), "--compile-only"]
    environment = _environment() | {"TORCHINDUCTOR_COMPILE_THREADS": "4"}
    return [
        subprocess.Popen([*command, pattern, "--parts", part], env=environment, stderr=subprocess.DEVNULL)
        for part, patterns in COMPILED.items()
        for pattern in patterns
    ]


def _environment() -> dict[str, str]:
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _run(part: str, folder: Path, seconds: float, trial: bool) -> None:
    """A part in a process of its own: where it dies or hangs, the others go on."""
    print(f"{part} …", flush=True)
    command = [sys.executable, __file__, "--in-process", "--parts", part, "--results", str(folder)]
    command += ["--seconds", str(seconds), *(["--trial"] if trial else [])]
    environment = _environment()
    if trial:
        environment["TRITON_INTERPRET"] = "1"
    started = time.monotonic()
    try:
        code = subprocess.run(command, env=environment, timeout=seconds + GRACE).returncode
        ended = f"ended with {code}" if code else "done"
    except subprocess.TimeoutExpired:
        ended = "stopped"
    print(f"{part}: {ended} after {time.monotonic() - started:.0f} s", flush=True)


def _measure(part: str, folder: Path, seconds: float, trial: bool) -> None:
    """Measure what a part lacks, until its time is up."""
    until = time.monotonic() + seconds
    setup = Setup(torch.device("cuda" if torch.cuda.is_available() and not trial else "cpu"), trial)
    rows = _rows(folder, part)
    missing = [case for case in _cases(part, setup, until) if not _is_done(rows.get(case[0], {}))]
    left, stamp = 0, {"code": _code(), "machine": _machine()}
    for name, measure in sorted(missing, key=lambda case: "error" in rows.get(case[0], {})):
        if time.monotonic() > until:
            left += 1
            continue
        # Where it takes its part down: then it comes last the next time.
        rows[name] = stamp | rows.get(name, {}) | {"error": "it did not end"}
        _write(folder, part, rows)
        rows[name] = stamp | _attempt(measure)
        _write(folder, part, rows)
        print(f"  {name}: {measured(rows[name])}", flush=True)
    if left:
        print(f"  {left} rows left for another time")


def _rows(folder: Path, part: str) -> dict[str, Row]:
    path = folder / f"{part}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _write(folder: Path, part: str, rows: dict[str, Row]) -> None:
    path = folder / f"{part}.json"
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(rows, indent=1) + "\n")
    unfinished.replace(path)


def _is_done(row: Row) -> bool:
    """Whether a row is of this code and this machine."""
    return "error" not in row and (row.get("code"), row.get("machine")) == (_code(), _machine())


def _compile(part: str, pattern: str, folder: Path) -> None:
    """Call the compiled models whose rows match and are missing."""
    setup, rows = Setup(torch.device("cuda"), trial=False), _rows(folder, part)
    for name, measure in _cases(part, setup, until=0.0):
        if "compiled" in name and re.match(pattern, name) and not _is_done(rows.get(name, {})):
            _attempt(measure)


def _cases(part: str, setup: Setup, until: float) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Names and measurements of a part. Imported late: one that cannot be imported stops no other."""
    if part == "tests":
        for selected in TESTS[1:2] if setup.trial else TESTS:
            yield selected, lambda selected=selected: _run_tests(shlex.split(selected), until)
    elif part in ("kernels", "tiles"):
        import gpu_kernels

        yield from getattr(gpu_kernels, part)(setup)
    elif part in ("backbones", "generators", "tuned"):
        import gpu_models

        yield from getattr(gpu_models, part)(setup)
    else:
        import gpu_loop

        yield from gpu_loop.loop(setup)


def _attempt(measure: Callable[[], Row]) -> Row:
    try:
        return measure()
    except Exception as error:  # out of memory, a library that is not there, a kernel that does not compile
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _run_tests(selected: list[str], until: float) -> Row:
    """How many tests passed, and those that failed; where time is up, of those that ran."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--no-header", *selected]
    if importlib.util.find_spec("xdist") and torch.cuda.is_available():  # compiling takes one core each
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    limit = max(10.0, until - time.monotonic())
    ended = "in time"
    with tempfile.TemporaryFile("w+") as log:
        try:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=limit)
        except subprocess.TimeoutExpired:
            ended = "time was up"
        log.seek(0)
        lines = log.read().splitlines()
    # A line of a test holds its name and what became of it, in either order.
    names = [next((word for word in line.split() if "::" in word), "") for line in lines]
    passed = {n for n, line in zip(names, lines, strict=True) if n and " PASSED" in line}
    failed = {n for n, line in zip(names, lines, strict=True) if n and (" FAILED" in line or "ERROR" in line)}
    row: Row = {"passed": len(passed), "failed": sorted(failed)[:20], "ended": ended}
    wrong = failed or ended != "in time" or not passed
    return row | ({"error": " | ".join(lines[-3:])[:500]} if wrong else {})


def _table(folder: Path) -> Iterator[str]:
    for part in SECONDS:
        rows = _rows(folder, part)
        if not rows:
            continue
        machine = Counter(row["machine"] for row in rows.values()).most_common(1)[0][0]
        yield f"## {part}\n\n{machine}.\n"
        yield "| | |\n| --- | --- |"
        for name, row in rows.items():
            other = [] if row.get("code") == _code() else ["other code"]
            if row["machine"] != machine:
                other.append(row["machine"])
            mark = f" (of {', '.join(other)})" if other else ""
            yield f"| {name}{mark} | {measured(row)} |"
        yield ""


@cache
def _code() -> str:
    """What the files of `CODE` are, in a few letters."""
    content = hashlib.sha256()
    for path in sorted(file for each in CODE for file in [ROOT / each, *(ROOT / each).rglob("*.py")]):
        if path.is_file():
            content.update(path.read_bytes())
    return content.hexdigest()[:12]


def _machine() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a trial, not measured"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def _gpu_name() -> str:
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


if __name__ == "__main__":
    main()
