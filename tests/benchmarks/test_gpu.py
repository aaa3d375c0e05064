"""`make gpu`, where there is no GPU: every line runs, and what is there is not measured again."""

from __future__ import annotations

import importlib
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def gpu() -> Any:
    return importlib.import_module("gpu")


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_benchmark_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


def rows(folder: Path, part: str) -> dict[str, Any]:
    found = json.loads((folder / f"{part}.json").read_text())
    return {
        name: {key: value for key, value in row.items() if key not in ("code", "machine")}
        for name, row in found.items()
    }


def use_cases(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, cases: dict[str, Callable[[], dict[str, Any]]]
) -> None:
    monkeypatch.setattr(gpu, "_cases", lambda *args: iter(cases.items()))


def test_rows_that_are_there_are_kept_and_failed_ones_tried_again(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("out of memory")

    use_cases(gpu, monkeypatch, {"one": fails, "two": lambda: {"ms": 1.0}})
    gpu._measure("loop", tmp_path, 60, True)
    assert rows(tmp_path, "loop") == {"one": {"error": "RuntimeError: out of memory"}, "two": {"ms": 1.0}}
    use_cases(gpu, monkeypatch, {"one": lambda: {"ms": 3.0}, "two": fails, "three": lambda: {"ms": 4.0}})
    gpu._measure("loop", tmp_path, 60, True)
    assert rows(tmp_path, "loop") == {"one": {"ms": 3.0}, "two": {"ms": 1.0}, "three": {"ms": 4.0}}
    table = "\n".join(gpu._table(tmp_path))
    assert "| three | ms 4 |" in table
    assert "a trial, not measured" in table or torch.cuda.is_available()


@pytest.mark.parametrize(("what", "mark"), [("_code", "other code"), ("_machine", "before")])
def test_rows_of_other_code_and_other_machines_are_measured_again(
    what: str, mark: str, gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, what, lambda: "before")
    use_cases(gpu, monkeypatch, {name: lambda: {"ms": 2.0} for name in ("one", "two", "three")})
    gpu._measure("loop", tmp_path, 60, True)
    monkeypatch.setattr(gpu, what, lambda: "now")
    use_cases(gpu, monkeypatch, {"one": lambda: {"ms": 3.0}, "three": lambda: {"ms": 3.0}})
    gpu._measure("loop", tmp_path, 60, True)
    assert rows(tmp_path, "loop") == {"one": {"ms": 3.0}, "two": {"ms": 2.0}, "three": {"ms": 3.0}}
    table = "\n".join(gpu._table(tmp_path))
    assert "| one | ms 3 |" in table
    assert f"| two (of {mark}) | ms 2 |" in table


def test_a_row_that_takes_its_part_down_is_tried_last_the_next_time(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = []

    def hangs() -> dict[str, Any]:
        begun.append("one")
        raise KeyboardInterrupt

    def ends() -> dict[str, Any]:
        begun.append("two")
        return {"ms": 2.0}

    use_cases(gpu, monkeypatch, {"one": hangs, "two": ends})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            gpu._measure("loop", tmp_path, 60, True)
    assert begun == ["one", "two", "one"]
    assert rows(tmp_path, "loop") == {"one": {"error": "it did not end"}, "two": {"ms": 2.0}}


def test_what_the_time_does_not_allow_is_left_for_another_start(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_cases(gpu, monkeypatch, {"one": lambda: {"ms": 1.0}, "two": lambda: {"ms": 2.0}})
    gpu._measure("loop", tmp_path, -1, True)
    assert not (tmp_path / "loop.json").exists()
    assert "2 rows left for another time" in capsys.readouterr().out


def test_a_part_that_dies_stops_no_other(gpu: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop.json").write_text("not JSON")
    gpu._run("loop", tmp_path, 1, True)
    assert "loop: ended with 1" in capfd.readouterr().out


def names(cases: Iterator[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in cases]


@pytest.mark.parametrize("part", ["tests", "kernels", "backbones", "generators", "loop", "tiles", "tuned"])
def test_rows_have_names_of_their_own(gpu: Any, part: str) -> None:
    setup = importlib.import_module("gpu_timing").Setup(torch.device("cuda"), False)
    listed = names(gpu._cases(part, setup, 0))
    assert len(set(listed)) == len(listed) > 1


def test_the_tests_of_the_kernels_exist_and_their_shares_are_the_grid(gpu: Any) -> None:
    assert all((gpu.ROOT / selected.split()[0]).is_file() for selected in gpu.TESTS)

    def collected(*arguments: str) -> list[str]:
        options = ["-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
        command = [sys.executable, *options, *arguments]
        done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "::" in line]

    shares = [collected(*shlex.split(selected)) for selected in gpu.TESTS if selected.startswith(gpu.GRID)]
    assert sorted(itertools.chain(*shares)) == sorted(collected(gpu.GRID))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py"], capture_output=True, text=True)
    assert done.returncode
    assert done.stderr.strip() == "gpu.py: PyTorch sees no CUDA GPU here; --trial runs every line without one"


def run_trial(folder: Path, *parts: str) -> None:
    command = [sys.executable, BENCHMARKS / "gpu.py", "--trial", "--results", folder, "--seconds", "3000"]
    subprocess.run([*command, *(["--parts", *parts] if parts else [])], check=True)


def test_a_trial_of_the_loop_runs(tmp_path: Path) -> None:
    run_trial(tmp_path, "loop")
    measured = rows(tmp_path, "loop")
    assert measured["trainer"]["share"] > 0
    assert measured["loader, one core"]["images/s"] > 0
    assert "| trainer |" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_a_trial_of_all_parts_runs(tmp_path: Path) -> None:
    for part in ("tests", "kernels", "backbones", "generators", "loop", "tiles", "tuned"):
        for _ in range(4):  # a part ends when its time is up
            run_trial(tmp_path, part)
        assert not [name for name, row in rows(tmp_path, part).items() if "error" in row], part
