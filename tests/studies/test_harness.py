"""The harness: each row once however many processes work, machines named in rows, and its statistics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from filelock import FileLock
from scipy import stats

from atconv.io import read_rows, write_rows
from atconv.tasks.common.sweep import Job, Sweep, seed_by_seed
from studies import harness
from studies.harness import mean_and_deviation, paired_difference, run_side_by_side, smallest_difference
from support.tiny import preload_forkserver
from support.tiny_study import counted_row

JOBS = seed_by_seed({"a": 3, "b": 1})


def make_sweep(folder: Path) -> Sweep:
    return Sweep(folder / "results.csv", folder / "runs", counted_row, torch.device("cpu"), "fp32", "model")


def test_jobs_come_seed_by_seed() -> None:
    assert [(job.variant, job.seed) for job in JOBS] == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]


def test_two_processes_make_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = preload_forkserver()  # of processes that need not import the package
    monkeypatch.setattr("multiprocessing.get_context", lambda method: context)
    run_side_by_side(make_sweep(tmp_path), JOBS, 2)
    rows = read_rows(tmp_path / "results.csv")
    assert sorted((row["model"], row["seed"], row["score"]) for row in rows) == [
        ("a", "0", "1"), ("a", "1", "11"), ("a", "2", "21"), ("b", "0", "1")
    ]  # fmt: skip
    assert {(row["device"], row["precision"]) for row in rows} == {("cpu", "fp32")}
    made = [path.read_text().split() for path in (tmp_path / "runs").glob("*/made")]
    assert [len(lines) for lines in made] == [1] * 4
    run_side_by_side(make_sweep(tmp_path), JOBS, 2)
    assert read_rows(tmp_path / "results.csv") == rows


@pytest.mark.parametrize(("number", "ends_with"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks up processes in /proc")
def test_a_killed_or_interrupted_command_leaves_no_run_behind(
    number: signal.Signals, ends_with: int, tmp_path: Path
) -> None:
    code = """
import signal, sys
from pathlib import Path
import torch
from atconv.tasks.common.sweep import Sweep, seed_by_seed
from studies import harness
from support.tiny_study import endless_row
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background processes ignore
sweep = Sweep(Path("results.csv"), Path("runs"), endless_row, torch.device("cpu"), "fp32")
sys.argv = ["study", "run", "data", "--jobs", "2", "--device", "cpu", "--out", "."]
harness.main("", Path(), lambda args: (sweep, seed_by_seed({"a": 2})), print)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    try:
        made = [tmp_path / "runs" / f"a-{seed}" / "made" for seed in range(2)]
        assert within(120, lambda: all(file.is_file() and file.read_text() for file in made))
        children = [Path("/proc") / file.read_text().strip() for file in made]
        assert all(child.exists() for child in children)
    finally:
        command.send_signal(number)
        assert command.wait(60) == ends_with
    assert within(20, lambda: not any(is_running(child) for child in children))
    assert not (tmp_path / "results.csv").exists()


def is_running(process: Path) -> bool:
    """Whether a process of /proc is there, and not only waits for its parent to notice its end."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, happens: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happens():
            return True
        time.sleep(0.1)
    return happens()


def test_rows_without_new_columns_stay(tmp_path: Path) -> None:
    write_rows(tmp_path / "results.csv", [{"model": "a", "seed": 0, "score": 5}])
    make_sweep(tmp_path).run(JOBS[:2])
    old, new = read_rows(tmp_path / "results.csv")
    assert old == {"model": "a", "seed": "0", "score": "5", "device": "", "precision": ""}
    assert new == {"model": "b", "seed": "0", "score": "1", "device": "cpu", "precision": "fp32"}


def test_commands_counted_rows_of_some_seeds_and_variants_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reported: list[Path] = []

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["study", *arguments])
        harness.main("doc", tmp_path, plan, lambda args: reported.append(args.out))

    def plan(args: Any) -> tuple[Sweep, list[Job]]:
        assert (args.data, args.device) == ("data", torch.device("cpu"))
        return Sweep(args.out / args.data / "results.csv", args.runs, counted_row, args.device, "fp32"), JOBS

    out = tmp_path / "again"
    run("run", "data", "--seeds", "0", "2", "--only", "a", "--device", "cpu", "--out", str(out))
    assert [(row["variant"], row["seed"]) for row in read_rows(out / "data" / "results.csv")] == [
        ("a", "0"),
        ("a", "2"),
    ]
    assert (out / "runs" / "a-2" / "made").is_file()
    assert reported == [out]
    for wrong, said in (
        (["data", "--only", "c"], "no variant c; there are a, b\n"),
        (["data", "--seeds", "0", "7"], "no seed 7: they go from 0 to 2\n"),
        (["data", "--device", "abacus"], "abacus"),
        (["data", "--jobs", "0"], "--jobs is 1 or more, got 0"),
        (["data", "--out", str(out / "data" / "results.csv")], "results.csv"),
        ([], "run takes data"),
    ):
        with pytest.raises(SystemExit) as ended:
            run("run", *wrong)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    run("report")
    assert reported == [out, tmp_path]


def test_what_ends_a_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(make_row: Callable[[Job, Path], dict[str, Any]]) -> None:
        monkeypatch.setattr(sys, "argv", ["study", "run", "data", "--device", "cpu"])
        sweep = Sweep(tmp_path / "results.csv", tmp_path / "runs", make_row, torch.device("cpu"), "fp32")
        harness.main("doc", tmp_path, lambda args: (sweep, JOBS[:1]), lambda args: pytest.fail("no rows"))

    for error, code, said in (
        (KeyboardInterrupt(), 130, "interrupted: the same command continues\n"),
        (PermissionError("images/ cannot be read"), 2, "images/ cannot be read\n"),
        (ValueError("no such data"), 2, "no such data\n"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(mock.Mock(side_effect=error))
        assert (ended.value.code, capsys.readouterr().err) == (code, said)
    with FileLock(tmp_path / "runs" / f"{JOBS[0].folder}.lock"):
        run(mock.Mock(side_effect=AssertionError))  # another process has the only run: nothing to report yet


def test_means_and_paired_differences_are_written_out() -> None:
    assert mean_and_deviation([1.0, 3.0], ".2f", ".2f") == "2.00 ± 1.41"
    assert mean_and_deviation([1.0]) == "1"
    scores = {("a", 0): 1, ("a", 1): 2, ("b", 0): 2, ("b", 1): 5, ("b", 2): 9}
    rows = [{"variant": v, "seed": str(s), "score": str(score)} for (v, s), score in scores.items()]
    # Differences 1 and 3: t(0.975, 1 degree of freedom) = 12.706 times √2 / √2.
    assert paired_difference(rows, "score", "b", "a") == "+2 ± 12.7 (95 %, 2 pairs)"
    assert paired_difference(rows[:3], "score", "b", "a") == "+1 (one pair)"
    assert paired_difference(rows[:2], "score", "b", "a") is None


@pytest.mark.parametrize("pairs", [2, 3, 8])
def test_the_smallest_difference_is_found_four_times_in_five(pairs: int) -> None:
    shift = smallest_difference(1.5, pairs)
    samples = np.random.default_rng(0).normal(shift, 1.5, (20_000, pairs))
    found = stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)
