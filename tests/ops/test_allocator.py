from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from atconv.ops.allocator import KEEP_VARIABLE, tune_allocator


def tuned_with(value: str | None) -> str:
    """What a new process returns with the variable set so; the module is read without importing torch."""
    from atconv.ops import allocator

    code = f"import runpy; print(runpy.run_path({allocator.__file__!r})['tune_allocator']())"
    environment = {k: v for k, v in os.environ.items() if k != KEEP_VARIABLE}
    if value is not None:
        environment[KEEP_VARIABLE] = value
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip()


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc")


@glibc
@pytest.mark.parametrize("value", [None, "0"])
def test_glibc_is_tuned(value: str | None) -> None:
    assert tuned_with(value) == "True"


@glibc
def test_the_variable_keeps_the_allocator() -> None:
    assert tuned_with("1") == "False"


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert tune_allocator() is False


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: no such file")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv(KEEP_VARIABLE, raising=False)
    monkeypatch.setattr("ctypes.CDLL", missing)
    assert tune_allocator() is False
