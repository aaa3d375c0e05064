"""Calls alternate, and warm-up does not count."""

from __future__ import annotations

import itertools

import pytest

from atconv.deploy import timing


def test_calls_are_interleaved_and_the_first_two_rounds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    # A clock that only calls move: a's take 100 and 50, then 1, 2 and 9 seconds; b's always 4.
    clock, takes = [0.0], {"a": iter([100, 50, 1, 2, 9]), "b": itertools.repeat(4)}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def call(name: str) -> None:
        called.append(name)
        clock[0] += next(takes[name])

    medians = timing.median_seconds({"a": lambda: call("a"), "b": lambda: call("b")}, rounds=3)
    assert medians == {"a": 2, "b": 4}
    assert called == ["a", "b"] * 5
